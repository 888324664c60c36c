#!/bin/sh
# socat as a worker: it binds the path that it is given, and answers whoever connects with a new process.
#
#   [pools.app.workers]
#   command = ["sh", "examples/shell/app.sh", "{socket}"]
[ "$1" = answer ] || exec socat UNIX-LISTEN:"$1",fork EXEC:"sh $0 answer"

while read -r line && [ ${#line} -gt 1 ]; do :; done # the request, to its empty line
printf 'HTTP/1.0 200 OK\r\n\r\nhello from shell worker %s (pid %s)\n' "$LB_WORKER_ID" "$$"
