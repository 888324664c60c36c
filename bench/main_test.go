package bench

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/273ebdf9/lb/internal/leaktest"
)

// TestMain lets the test binary play the other programs: by the name it is called under (nginx, wrk,
// balancer), or as one of the plain children that the tests of Process need.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "nginx":
		os.Exit(playNginx())
	case "wrk":
		os.Exit(playWrk())
	case "balancer":
		os.Exit(playBalancer())
	}
	if role := os.Getenv("LB_BENCH_CHILD"); role != "" {
		os.Exit(playChild(role))
	}
	// Built with -race, each of these children would otherwise stay a second before it exits.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(leaktest.Run(m))
}

// actor makes the test binary callable under another name and returns its path.
func actor(t *testing.T, name string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// touchedBytes is how much memory the role "toucher" maps first, and touches when it gets SIGUSR1.
const touchedBytes = 32 << 20

func untilSignal(sig ...os.Signal) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, sig...)
	<-c
}

func playChild(role string) int {
	switch role {
	case "sleeper":
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM)
		fmt.Println("ready")
		<-end
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		untilSignal(syscall.SIGUSR1)
	case "parent", "crashing-parent":
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "LB_BENCH_CHILD=stubborn")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: role == "parent"}
		if err := cmd.Start(); err != nil {
			fmt.Println(err)
			return 1
		}
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM, syscall.SIGUSR1)
		fmt.Printf("child %d\nready\n", cmd.Process.Pid)
		<-end
		if role == "crashing-parent" {
			return 3
		}
	case "toucher":
		memory, err := syscall.Mmap(-1, 0, touchedBytes, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGUSR1)
		fmt.Println("ready")
		<-c
		for i := 0; i < len(memory); i += 4096 {
			memory[i] = 1
		}
		fmt.Println("touched")
		untilSignal(syscall.SIGTERM)
	case "failing":
		fmt.Println("no such thing")
		return 7
	}
	return 0
}

// playNginx serves the three replies where the configuration says to listen.
func playNginx() int {
	if slices.Contains(os.Args, "-v") {
		fmt.Println("nginx version: nginx/0.0.1")
		return 0
	}
	config, err := os.ReadFile(os.Args[slices.Index(os.Args, "-c")+1])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	socket := regexp.MustCompile(`listen unix:(\S+)`).FindStringSubmatch(string(config))[1]
	ln, err := net.Listen("unix", socket)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go http.Serve(ln, http.HandlerFunc(serveBodies))
	untilSignal(syscall.SIGTERM)
	return 0
}

func serveBodies(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/small" {
		io.WriteString(w, smallBody)
		return
	}
	io.WriteString(w, strings.Repeat("x", int(max(0, BodySize(r.URL.Path)))))
}

// playWrk sends one request, to make the balancer work, and prints a report with it.
func playWrk() int {
	if slices.Contains(os.Args, "-v") {
		fmt.Println("wrk 0.0.2 [epoll] Copyright")
		return 1
	}
	reply, err := http.Get(os.Args[len(os.Args)-1])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	io.Copy(io.Discard, reply.Body)
	fmt.Print(wrkReport)
	return 0
}

// playBalancer passes connections from its first argument to the Unix socket in its second. With a third
// argument it dies of the request for that path.
func playBalancer() int {
	ln, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			go pass(client)
		}
	}()
	untilSignal(syscall.SIGTERM)
	return 0
}

func pass(client net.Conn) {
	defer client.Close()
	backend, err := net.Dial("unix", os.Args[2])
	if err != nil {
		return
	}
	defer backend.Close()
	in := bufio.NewReader(client)
	if first, err := in.Peek(8); err == nil && len(os.Args) > 3 && strings.HasPrefix(string(first), "GET "+os.Args[3]) {
		fmt.Println("cannot bear", os.Args[3])
		os.Exit(9)
	}
	// Without these covers io.Copy would splice, and hold a pipe for each direction.
	type reader struct{ io.Reader }
	type writer struct{ io.Writer }
	go io.Copy(writer{client}, reader{backend})
	io.Copy(writer{backend}, reader{in})
}
