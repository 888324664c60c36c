//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roleVariable is the environment variable that makes this test binary something else than tests. A role is a
// process of its own where a test wants to kill it, or where the fds of one process are too few.
const roleVariable = "LB_E2E_ROLE"

const (
	roleLines   = "lines"   // a backend that answers each line with its name and the line
	roleTalking = "talking" // a lines backend that counts aloud
	roleMute    = "mute"    // a backend that accepts and never reads
	roleFleet   = "fleet"   // many clients of a lines backend
	roleChecked = "checked" // a worker that takes connections over and checks and answers exchanges
	roleNoDiag  = "nodiag"  // another program, which the kernel refuses sock_diag
	roleNoRing  = "noring"  // another program, which the kernel refuses io_uring
	roleTaker   = "taker"   // a worker that takes handed-off connections, and answers lines
)

// runRole is the main function of a role; its result is the exit code.
func runRole(role string, args []string) int {
	var err error
	switch role {
	case roleLines:
		err = serveLines(args[0], args[1])
	case roleTalking:
		go countAloud()
		err = serveLines(args[0], args[1])
	case roleMute:
		err = serveMute(args[0])
	case roleChecked:
		err = serveChecked()
	case roleNoDiag:
		err = runWithoutDiag(args)
	case roleNoRing:
		err = runWithoutRing(args)
	case roleTaker:
		err = serveTaken(args[0])
	case roleFleet:
		err = runFleet(args[0], os.Stdin, os.Stdout)
	default:
		err = fmt.Errorf("unknown role %q", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// self returns the path of this test binary.
func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatalf("cannot find this test binary: %v", err)
	}
	return path
}

// roleCommand returns the command that runs this binary in a role.
func roleCommand(t testing.TB, role string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(self(t), args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return cmd
}

// listenAgain listens on an address as lb's config writes it; a socket file that an earlier process left is
// removed.
func listenAgain(address string) (net.Listener, error) {
	network, addr := splitAddress(address)
	if network == "unix" && !strings.HasPrefix(addr, "@") {
		if err := os.Remove(addr); err != nil && !os.IsNotExist(err) {
			return nil, err
		}
	}
	return net.Listen(network, addr)
}

// startLines starts a backend process that answers each line with its name and the line.
func startLines(t testing.TB, name, address string) *process {
	t.Helper()
	p := startProcess(t, name, roleCommand(t, roleLines, name, address))
	waitOutput(t, p, "listening")
	return p
}

// startMute starts a backend process that accepts and never reads. It prints "unread N" each time the number
// of bytes that wait in one of its connections changes.
func startMute(t testing.TB, address string) *process {
	t.Helper()
	p := startProcess(t, "mute", roleCommand(t, roleMute, address))
	waitOutput(t, p, "listening")
	return p
}

// waitOutput waits until the output of a process holds text.
func waitOutput(t testing.TB, p *process, text string) {
	t.Helper()
	eventually(t, patience, func() error {
		if got := p.tail(); !strings.Contains(got, text) {
			return fmt.Errorf("output of %s: got %q; want %q", p.name, got, text)
		}
		return nil
	})
}

func serveLines(name, address string) error {
	l, err := listenAgain(address)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go answerLines(name, conn)
	}
}

// countAloud prints "number N", one after the other.
func countAloud() {
	for n := 1; ; n++ {
		fmt.Println("number", n)
		time.Sleep(2 * time.Millisecond)
	}
}

func answerLines(name string, conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 64)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := io.WriteString(conn, name+" "+line); err != nil {
			return
		}
	}
}

func serveMute(address string) error {
	l, err := listenAgain(address)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go watchUnread(conn)
	}
}

// watchUnread prints how many bytes wait in conn, each time that this changes, and reads none.
func watchUnread(conn net.Conn) error {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	for last := 0; ; time.Sleep(10 * time.Millisecond) {
		var unread int
		var failed error
		if err := raw.Control(func(fd uintptr) { unread, failed = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil {
			return err
		}
		if failed != nil {
			return failed
		}
		if unread != last {
			fmt.Println("unread", unread)
			last = unread
		}
	}
}

// fleetCount is what the clients of a fleet see.
type fleetCount struct {
	Open   int // sockets held
	Served int // of these, whose last line was answered, and which have not ended
	Ended  int // of these, which the other side ended
	Failed int // dials that failed; their sockets are gone
}

func (c *fleetCount) add(d fleetCount) {
	c.Open += d.Open
	c.Served += d.Served
	c.Ended += d.Ended
	c.Failed += d.Failed
}

// fleet is many clients of a lines backend, spread over processes, for one process may not have enough fds.
type fleet struct {
	processes []*process
	in        []io.WriteCloser
	out       []*json.Decoder
}

// startFleet starts processes that will connect to address.
func startFleet(t testing.TB, address string, processes int) *fleet {
	t.Helper()
	f := &fleet{}
	for i := range processes {
		cmd := roleCommand(t, roleFleet, address)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatalf("cannot make a pipe: %v", err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatalf("cannot make a pipe: %v", err)
		}
		cmd.Stdout = w
		f.processes = append(f.processes, startProcess(t, fmt.Sprintf("fleet %d", i), cmd))
		f.in = append(f.in, in)
		f.out = append(f.out, json.NewDecoder(r))
		w.Close()
		t.Cleanup(func() { r.Close() })
	}
	return f
}

// do gives each process its part of "COMMAND n" and returns the sum of what they then see.
func (f *fleet) do(t testing.TB, command string, n int) fleetCount {
	t.Helper()
	for i, in := range f.in {
		part := n / len(f.in)
		if i < n%len(f.in) {
			part++
		}
		if _, err := fmt.Fprintln(in, command, part); err != nil {
			t.Fatalf("cannot tell the fleet to %s: %v", command, err)
		}
	}
	var sum fleetCount
	for _, out := range f.out {
		var c fleetCount
		if err := out.Decode(&c); err != nil {
			t.Fatalf("cannot read the answer of the fleet to %s: %v", command, err)
		}
		sum.add(c)
	}
	return sum
}

// open dials n more clients, each of which says a line; it does not wait for all answers.
func (f *fleet) open(t testing.TB, n int) fleetCount { t.Helper(); return f.do(t, "open", n) }

// ping makes every served client say a line and waits for the answers.
func (f *fleet) ping(t testing.TB) fleetCount { t.Helper(); return f.do(t, "ping", 0) }

// count only looks.
func (f *fleet) count(t testing.TB) fleetCount { t.Helper(); return f.do(t, "count", 0) }

// closeServed closes n clients that are served; closeAll closes all.
func (f *fleet) closeServed(t testing.TB, n int) fleetCount { t.Helper(); return f.do(t, "close", n) }
func (f *fleet) closeAll(t testing.TB) fleetCount           { t.Helper(); return f.do(t, "close-all", 0) }

// fleetClient is one client. A goroutine reads its answers; everything else belongs to runFleet.
type fleetClient struct {
	conn    net.Conn
	asked   int64
	answers atomic.Int64
	ended   atomic.Bool
}

func (c *fleetClient) read() {
	r := bufio.NewReaderSize(c.conn, 64)
	for {
		if _, err := r.ReadString('\n'); err != nil {
			c.ended.Store(true)
			return
		}
		c.answers.Add(1)
	}
}

func (c *fleetClient) ask() {
	c.asked++
	io.WriteString(c.conn, "hello\n") // a failure shows as a missing answer
}

func (c *fleetClient) served() bool {
	return !c.ended.Load() && c.asked > 0 && c.answers.Load() == c.asked
}

// runFleet is the fleet role: it reads commands, one a line, and answers each with a fleetCount in JSON.
func runFleet(address string, commands io.Reader, answers io.Writer) error {
	var clients []*fleetClient
	failed := 0
	lines := bufio.NewScanner(commands)
	for lines.Scan() {
		command, arg, _ := strings.Cut(lines.Text(), " ")
		n, err := strconv.Atoi(arg)
		if err != nil {
			return fmt.Errorf("cannot read the command %q: %w", lines.Text(), err)
		}
		switch command {
		case "open":
			opened := openFleet(address, n)
			failed += n - len(opened)
			clients = append(clients, opened...)
		case "ping":
			pingFleet(clients)
		case "close", "close-all":
			kept := clients[:0]
			for _, c := range clients {
				if command == "close" && (n == 0 || !c.served()) {
					kept = append(kept, c)
					continue
				}
				c.conn.Close()
				n--
			}
			clients = kept
		}
		count := fleetCount{Open: len(clients), Failed: failed}
		for _, c := range clients {
			if c.served() {
				count.Served++
			}
			if c.ended.Load() {
				count.Ended++
			}
		}
		if err := json.NewEncoder(answers).Encode(count); err != nil {
			return err
		}
	}
	return lines.Err()
}

// openFleet dials n clients, at most 64 at a time, so that no backlog overflows before lb could accept: a
// client makes place for the next when it has its answer, or after 200 ms without one.
func openFleet(address string, n int) []*fleetClient {
	var (
		mu      sync.Mutex
		clients []*fleetClient
		all     sync.WaitGroup
	)
	network, addr := splitAddress(address)
	places := make(chan struct{}, 64)
	for range n {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			conn, err := net.DialTimeout(network, addr, patience)
			if err != nil {
				return
			}
			c := &fleetClient{conn: conn}
			c.ask()
			go c.read()
			for start := time.Now(); !c.served() && !c.ended.Load() && time.Since(start) < 200*time.Millisecond; {
				time.Sleep(time.Millisecond)
			}
			mu.Lock()
			clients = append(clients, c)
			mu.Unlock()
		})
	}
	all.Wait()
	return clients
}

// pingFleet makes every served client ask again, and waits until all have their answer, at most patience.
func pingFleet(clients []*fleetClient) {
	var asked []*fleetClient
	for _, c := range clients {
		if c.served() {
			c.ask()
			asked = append(asked, c)
		}
	}
	for start := time.Now(); time.Since(start) < patience; time.Sleep(10 * time.Millisecond) {
		missing := 0
		for _, c := range asked {
			if !c.served() && !c.ended.Load() {
				missing++
			}
		}
		if missing == 0 {
			return
		}
	}
}

// socketPath returns the address of a Unix socket named name in dir.
func socketPath(dir, name string) string { return "unix:" + filepath.Join(dir, name) }
