// Command go is a sample worker that links lb's SDK: it tells when it is ready, sends heartbeats, and stops when asked.
//
//	[pools.app.workers]
//	command = ["./bin/sample-go"]      # go build -o bin/sample-go ./examples/go
//	ready = "notify"                   # it says so itself; with [pools.app.health] type = "notify" it is watched by heartbeat
//
// Run by hand it listens on 127.0.0.1:8081.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/273ebdf9/lb/worker"
)

func main() {
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello from Go worker %s (pid %d)\n", os.Getenv("LB_WORKER_ID"), os.Getpid())
	})}
	w, err := worker.Listen(context.Background(), worker.Options{Address: "127.0.0.1:8081"})
	if err == nil {
		err = w.Serve(server.Serve, server.Shutdown)
	}
	if err != nil {
		log.Fatal(err)
	}
}
