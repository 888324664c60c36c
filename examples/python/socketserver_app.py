# The standard library's http.server (a socketserver) with lbworker.py. See lb.toml beside it.
import http.server
import os
import signal
import threading

import lbworker


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"hello {self.client_address[0]} from Python worker {os.environ.get('LB_WORKER_ID')} (pid {os.getpid()}) {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass  # lb has an access log


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False  # server_close waits for those that answer

    def __init__(self):
        super(http.server.HTTPServer, self).__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = lbworker.listen()


server = Server()
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
lbworker.notify("READY=1")
lbworker.beat_in_thread()
server.serve_forever(poll_interval=0.1)
server.server_close()
