//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// Programs that use examples/python/lbworker.py, and answer with the client's address.
const (
	pythonAsyncio = `
import asyncio, signal, lbworker
open_now = 0
async def serve(reader, writer):
    global open_now
    open_now += 1
    try:
        await reader.readuntil(b"\r\n\r\n")
        text = writer.get_extra_info("peername")[0].encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        await writer.drain()
    finally:
        writer.close()
        open_now -= 1
async def main():
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    stop = await lbworker.start_server(serve)
    await ended.wait()
    stop()
    while open_now:
        await asyncio.sleep(0.01)
asyncio.run(main())
`
	pythonSocketserver = `
import socketserver, signal, threading, lbworker
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        text = self.client_address[0].encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    def __init__(self):
        super().__init__(("", 0), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = lbworker.listen()
server = Server()
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
lbworker.notify("READY=1")
lbworker.beat_in_thread()
server.serve_forever(poll_interval=0.1)
server.server_close()
`
)

// pythonWorkers are the workers of a Python program that uses lbworker.py.
func pythonWorkers(t testing.TB, text string) string {
	t.Helper()
	module, err := filepath.Abs("../../examples/python")
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("command = [%q, %q]\nenv = { PYTHONPATH = %q, PYTHONDONTWRITEBYTECODE = \"1\" }\nready = \"notify\"\n",
		program(t, "python3"), writeFile(t, tempDir(t), "app.py", text, 0o644), module)
}

func TestHandOff_PythonProgramsTakeConnections(t *testing.T) {
	for name, text := range map[string]string{"asyncio": pythonAsyncio, "socketserver": pythonSocketserver} {
		t.Run(name, func(t *testing.T) {
			workers := pythonWorkers(t, text)
			rollsOver(t, "lb", workers)

			l := startLB(t, handoffPool(t, "lb", "", workers+"count = 2\n"))
			stopped := l.waitUp(t, 2).pids()[0]
			if err := syscall.Kill(stopped, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			defer syscall.Kill(stopped, syscall.SIGCONT)
			var clients sync.WaitGroup
			for range 30 {
				clients.Go(func() {
					c := http.Client{Timeout: patience, Transport: clientTransport(false)}
					if err := whoAmI(&c, l.addr()); err != nil {
						t.Errorf("a connection that began after a worker was stopped: %v", err)
					}
				})
			}
			clients.Wait()
		})
	}
}
