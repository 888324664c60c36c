// Command hello is a sample app process: an HTTP server on a Unix socket that says which process answered.
//
//	hello NAME SOCKET
//
// GET / answers at once, GET /slow?ms=N after N milliseconds. SIGTERM ends it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: hello NAME SOCKET")
	}
	name, path := os.Args[1], os.Args[2]
	if err := serve(name, path); err != nil {
		log.Fatalf("hello %s: %v", name, err)
	}
}

func serve(name, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ms, err := strconv.Atoi(r.URL.Query().Get("ms")); err == nil && r.URL.Path == "/slow" {
			select {
			case <-time.After(time.Duration(min(max(ms, 0), 60_000)) * time.Millisecond):
			case <-r.Context().Done():
			}
		}
		fmt.Fprintf(w, "hello from %s (pid %d)\n", name, os.Getpid())
	})}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	go func() {
		<-ctx.Done()
		srv.Shutdown(context.Background())
	}()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
