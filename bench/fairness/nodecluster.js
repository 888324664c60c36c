// The primary process of Node's cluster module, as the plainest one would be: lb bench runs it as the
// contender node-cluster. It starts a worker that dies again, and does not notice one that is stuck.
//
//   node nodecluster.js COUNT MOST [NODE-OPTION...] APP [ARGUMENT...]
//
// SIGUSR2 replaces the workers one by one, each when its successor listens; SIGHUP starts more, up to MOST.
// Each line on standard output says what has happened.
'use strict'
const cluster = require('cluster')
const [count, most] = process.argv.slice(2, 4).map(Number)
const words = process.argv.slice(4)
const app = words.findIndex(word => !word.startsWith('-'))
cluster.setupPrimary({ execArgv: words.slice(0, app), exec: words[app], args: words.slice(app + 1) })

const slots = []
let stopping = false

// start starts a worker in a slot, and resolves when it listens.
function start (slot) {
  const worker = slots[slot] = cluster.fork({ LB_WORKER_ID: slot })
  worker.on('exit', () => { if (!stopping && slots[slot] === worker) start(slot) })
  return new Promise(resolve => worker.once('listening', resolve))
}

async function grow (to) {
  const added = []
  for (let slot = slots.length; slot < to; slot++) added.push(start(slot))
  const addresses = await Promise.all(added)
  if (addresses.length > 0) console.log('listening ' + addresses[0].port)
}

async function restart () {
  for (let slot = 0; slot < slots.length; slot++) {
    const old = slots[slot]
    const ended = new Promise(resolve => old.once('exit', resolve))
    await start(slot)
    old.disconnect()
    const late = setTimeout(() => old.process.kill('SIGKILL'), 3000)
    await ended
    clearTimeout(late)
    await new Promise(resolve => setTimeout(resolve, 100))
  }
  console.log('restarted')
}

process.on('SIGUSR2', restart)
process.on('SIGHUP', () => grow(most).then(() => console.log('grown')))
process.on('SIGTERM', () => {
  stopping = true
  for (const worker of slots) worker.process.kill('SIGKILL')
  process.exit(0)
})
grow(count)
