package supervisor

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/273ebdf9/lb/internal/leaktest"
	"github.com/273ebdf9/lb/internal/sdnotify"
)

// TestMain is four programs: the shim, a worker, a front, and the tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == ExecArg {
		Exec(os.Args[2:])
	}
	if len(os.Args) > 2 && os.Args[1] == "front" {
		playFront(os.Args[2:])
		return
	}
	if len(os.Args) > 2 && os.Args[1] == "attack" {
		attack(os.Args[2], os.Args[3:])
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		work(os.Args[2:])
		return
	}
	flag.Parse()
	flag.Set("test.parallel", "8") // they wait more than they work
	os.Exit(leaktest.Run(m))
}

// work is a worker: an HTTP server that says its pid and directory. Words change what it does.
func work(words []string) {
	has := func(word string) bool {
		for _, w := range words {
			if w == word {
				return true
			}
		}
		return false
	}
	notify := sdnotify.FromEnv()
	for _, word := range words {
		if attack, ok := attacks[word]; ok {
			attack()
		}
	}
	if has("drains") {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGUSR2)
		go func() {
			<-signals
			notify.Send(sdnotify.Message{Status: "draining", HasStatus: true})
		}()
	}
	if has("deaf") {
		signal.Ignore(syscall.SIGTERM)
	}
	if has("fail") {
		fmt.Fprintln(os.Stderr, "no configuration")
		os.Exit(3)
	}
	var ln net.Listener
	var err error
	switch {
	case os.Getenv("PORT") != "":
		ln, err = net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	case os.Getenv("LISTEN_FDS") == "1":
		if os.Getenv("LISTEN_PID") != fmt.Sprint(os.Getpid()) {
			fmt.Fprintln(os.Stderr, "LISTEN_PID is another's")
			os.Exit(1)
		}
		ln, err = net.FileListener(os.NewFile(3, "listener"))
	default:
		ln, err = net.Listen("unix", os.Getenv("LB_WORKER_SOCKET"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if has("notify") {
		notify.Send(sdnotify.Message{Ready: true, Status: "serving", HasStatus: true, Watchdog: true})
	}
	if has("short") {
		time.AfterFunc(500*time.Millisecond, func() { os.Exit(4) })
	}
	dir, _ := os.Readlink("/proc/self/cwd") // os.Getwd believes PWD
	http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/flood":
			line := []byte(strings.Repeat("x", 99) + "\n")
			for range 100_000 {
				os.Stdout.Write(line)
			}
		case "/stopping":
			notify.Send(sdnotify.Message{Stopping: true})
		case "/env":
			fmt.Fprintln(w, strings.Join(os.Environ(), "\n"))
			return
		case "/print":
			fmt.Println(r.URL.Query().Get("text"))
		case "/write": // as it is, without a line break
			os.Stdout.WriteString(r.URL.Query().Get("text"))
		case "/count": // each line in two writes
			go func() {
				for i := range 3000 {
					fmt.Print(i)
					fmt.Print(" is a number\n")
					if i%10 == 0 {
						notify.Send(sdnotify.Message{Watchdog: true})
					}
				}
				fmt.Println("counted")
			}()
		case "/beat":
			notify.Send(sdnotify.Message{Watchdog: true, Status: r.URL.Query().Get("text"), HasStatus: true})
		}
		fmt.Fprintf(w, "%d %s", os.Getpid(), dir)
	}))
}

// openFDs are the descriptors of a process, with what they are.
func openFDs(pid string) []string {
	entries, _ := os.ReadDir("/proc/" + pid + "/fd")
	var all []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/" + pid + "/fd/" + e.Name()); err == nil {
			all = append(all, e.Name()+" "+target)
		}
	}
	return all
}

// wantFDs waits until no more than n descriptors are open: a connection that get has used is closed a moment
// after it.
func wantFDs(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		open := openFDs("self")
		if len(open) <= n {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%d descriptors are open; %d were before: %q", len(open), n, open)
			return
		}
	}
}

func background(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
