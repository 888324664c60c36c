// A plain Node server, which knows nothing of lb: it listens on the path that it is given.
//
//   [pools.app.workers]
//   command = ["node", "examples/node/app.js", "{socket}"]
//
// By hand: node examples/node/app.js 8081
const http = require('http')

const server = http.createServer((request, response) => {
  response.end(`hello from Node worker ${process.env.LB_WORKER_ID} (pid ${process.pid}) to ${request.socket.remoteAddress || "you"}\n`)
})
server.listen(process.argv[2])

process.on('SIGTERM', () => server.close(() => process.exit(0)))
