// Command go is a sample worker that links lb's SDK: it tells when it is ready, sends heartbeats, and stops
// when asked.
//
//	[pools.app.workers]
//	command = ["./bin/sample"]         # go build -o bin/sample ./examples/go
//	ready = "notify"                   # it says so itself; with [pools.app.health] type = "notify" it is watched by heartbeat
//
// GET / answers at once, GET /slow?ms=N after N milliseconds, GET /client with the client's address. Run by
// hand it listens on 127.0.0.1:8081.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/worker"
)

// drain gets lb's drain_signal, when this process gets no new connections: clients then hear with their next
// answer that they should open another one. Not http.Server.SetKeepAlivesEnabled, which closes idle
// connections, maybe as a request is on its way.
var drain = make(chan os.Signal, 1)

func draining() bool { return len(drain) > 0 }

func main() {
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(hello)}
	signal.Notify(drain, syscall.SIGUSR2)
	w, err := worker.Listen(context.Background(), worker.Options{Address: "127.0.0.1:8081"})
	if err == nil {
		err = w.Serve(server.Serve, server.Shutdown)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func hello(w http.ResponseWriter, r *http.Request) {
	if draining() {
		w.Header().Set("Connection", "close")
	}
	if r.URL.Path == "/client" {
		fmt.Fprint(w, r.RemoteAddr)
		return
	}
	if ms, err := strconv.Atoi(r.URL.Query().Get("ms")); err == nil && r.URL.Path == "/slow" {
		select {
		case <-time.After(time.Duration(min(max(ms, 0), 60_000)) * time.Millisecond):
		case <-r.Context().Done():
		}
	}
	fmt.Fprintf(w, "hello from Go worker %s (pid %d)\n", os.Getenv("LB_WORKER_ID"), os.Getpid())
}
