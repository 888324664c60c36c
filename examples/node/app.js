// A plain Node server, which knows nothing of lb: it listens on the path that it is given.
//
//   [pools.app.workers]
//   command = ["node", "examples/node/app.js", "{socket}"]
//   drain_signal = "SIGUSR2"
//
// By hand: node examples/node/app.js 8081
const http = require('http')

// With drain_signal lb says when this process gets no new connections: clients then hear with their next
// answer that they should open another connection.
let draining = false
process.on('SIGUSR2', () => { draining = true })

const server = http.createServer((request, response) => {
  if (draining) response.setHeader('Connection', 'close')
  response.end(`hello from Node worker ${process.env.LB_WORKER_ID} (pid ${process.pid}) to ${request.socket.remoteAddress || "you"}\n`)
})
server.listen(process.argv[2])

process.on('SIGTERM', () => server.close(() => process.exit(0)))
