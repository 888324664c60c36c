// An express application. See express.toml.
const app = require('express')()

// See app.js for drain_signal.
let draining = false
process.on('SIGUSR2', () => { draining = true })
app.use((request, response, next) => {
  if (draining) response.setHeader('Connection', 'close')
  next()
})

app.get('/', (request, response) => {
  response.send(`hello ${request.ip} from Node worker ${process.env.LB_WORKER_ID} (pid ${process.pid})\n`)
})
app.listen(process.argv[2] || 3000)
