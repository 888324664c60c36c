package worker_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/273ebdf9/lb/worker"
)

// An http.Server as a worker of lb: it is ready when it accepts, sends its heartbeats, and finishes its
// requests when it is asked to stop.
func Example() {
	server := &http.Server{Handler: http.NotFoundHandler()}

	w, err := worker.Listen(context.Background(), worker.Options{Address: "127.0.0.1:8080"})
	if err == nil {
		err = w.Serve(server.Serve, server.Shutdown)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// A worker that knows by itself whether it is well.
func ExampleListen() {
	well := func() bool { return true } // asks the program's own parts
	ctx, cancel := context.WithCancel(context.Background())
	w, err := worker.Listen(ctx, worker.Options{Address: "127.0.0.1:0", Alive: well, WaitReady: true})
	if err != nil {
		log.Fatal(err)
	}
	w.Status("loading")
	w.Ready()
	cancel()
	<-w.Stopping().Done()
	fmt.Println("stopping", w.Close())
	// Output: stopping <nil>
}
