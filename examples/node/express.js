// An express application that knows nothing of lb. npm install express; in lb.toml: command = ["node",
// "examples/node/express.js"]
const app = require('express')()
app.get('/', (request, response) => {
  response.send(`hello ${request.ip} from Node worker ${process.env.LB_WORKER_ID} (pid ${process.pid})\n`)
})
app.listen(3000)
