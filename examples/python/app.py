# Python's http.server on the listening socket that lb hands over as descriptor 3, as systemd's socket
# activation does.
#
#   [pools.app.workers]
#   command = ["python3", "examples/python/app.py"]
#
# gunicorn takes the same socket unchanged. For the clients' own sockets (handoff = "lb") see lb.toml and
# gunicorn.toml.
import http.server
import os
import signal
import socket
import sys


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"hello from Python worker {os.environ.get('LB_WORKER_ID')} (pid {os.getpid()})\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):  # a client of a Unix socket has no address
        return "lb"


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, listening):
        super().__init__(("localhost", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening

    def get_request(self):
        connection, _ = self.socket.accept()
        return connection, ("lb", 0)


if os.environ.get("LISTEN_PID") != str(os.getpid()):
    sys.exit("start it with lb: it serves on descriptor 3")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
Server(socket.socket(fileno=3)).serve_forever()
