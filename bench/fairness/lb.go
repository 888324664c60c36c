package fairness

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/bench"
)

const (
	// beatInterval is within which lb wants a heartbeat of the benchmark's worker; after beatFall without one
	// it is down.
	beatInterval = 250 * time.Millisecond
	beatFall     = 2
	// restartSurge is how many workers lb replaces at a time, after the first. It has each successor live for
	// a second before it goes on, so that one at a time would outlast the load.
	restartSurge = "4"
	// Detection is how long lb takes, by its configuration, to find a worker stuck.
	Detection = (beatFall + 1) * beatInterval
)

// control is a running lb that runs the workers.
type control struct {
	*bench.Running
	binary string
	socket string
}

// startLB starts lb as the contender of that name, and waits until all of its workers are up.
func startLB(ctx context.Context, s *stage, name string) (*control, error) {
	c := &control{binary: s.options.Self.LB, socket: bench.AdminSocket(s.home)}
	lb := bench.LB(name, c.binary, func(_, addr string, _ []bench.Backend) string { return lbConfig(s, name, addr, c.socket) })
	waiting, giveUp := context.WithCancel(ctx)
	defer giveUp()
	var dead, err error
	c.Running, err = bench.Launch(waiting, lb, s.home, nil, func(ctx context.Context, _ *bench.Running) error {
		if _, err := os.Stat(c.socket); err != nil {
			return err
		}
		err := c.ready(ctx, s)
		if errors.Is(err, errWorkerEnded) { // lb goes on trying
			dead = cmp.Or(dead, err)
			giveUp()
		}
		return err
	})
	return c, cmp.Or(dead, err)
}

// errWorkerEnded is for a worker that ended while it was to become ready.
var errWorkerEnded = errors.New("ended")

// ready says whether all workers are up, and gives them their weights.
func (c *control) ready(ctx context.Context, s *stage) error {
	slots, err := c.slots(ctx)
	if err != nil {
		return err
	}
	up, allowed := 0, 0
	if s.wantsPort() {
		allowed = 1 // another program may have been quicker to take the port
	}
	for _, slot := range slots {
		if slot.State == "up" {
			up++
		} else if e := slot.LastExit; e != nil && slot.QuickDeaths > allowed {
			return fmt.Errorf("worker %d %w (%s)%s", slot.Slot, errWorkerEnded, e.Reason, indented(e.Lines))
		}
	}
	if up < s.workers() {
		return fmt.Errorf("%d of %d workers are up", up, s.workers())
	}
	if s.kase.Weights == [2]int{} {
		return nil
	}
	for _, slot := range slots {
		weight := s.kase.Weights[slot.Slot*2/s.options.Workers]
		if err := c.command(ctx, "weight", "app/"+strconv.Itoa(slot.Slot), strconv.Itoa(weight)); err != nil {
			return err
		}
	}
	return nil
}

// lbConfig is lb as a user would configure it who wants a stuck worker found soon.
func lbConfig(s *stage, name, addr, socket string) string {
	health := fmt.Sprintf("type = \"notify\"\ninterval = %q\nfall = %d\n", beatInterval, beatFall)
	ready, delivery := "notify", ""
	words, env := s.worker(), []string(nil)
	if len(s.options.Command) > 0 { // which may know no heartbeats
		health, ready = "type = \"connect\"\n", "connect"
	}
	if name != ContenderLB {
		delivery = fmt.Sprintf("handoff = %q\n", s.options.handoff())
		if name == ContenderHandoffOne {
			delivery += "handoff_window = 1\n"
		}
		if len(s.options.Command) > 0 { // lb sees whether connections are taken
			health, ready = "", "connect"
			words, env = s.atPort(addr)
		}
	}
	balance := "leastconn"
	if s.kase.Weights != [2]int{} {
		balance = "roundrobin"
	}
	return fmt.Sprintf(`[admin]
socket = %q
http = ""
[proxy]
stop_timeout = "0s"
[log]
level = "error"
access = "off"
[listeners.web]
bind = [%q]
pool = "app"
[pools.app]
balance = %q
%s[pools.app.health]
%son_down = "close"
[pools.app.workers]
command = [%s]
env = { %s }
count = %d
ready = %q
stop_timeout = "2s"
kill_timeout = "500ms"
kill_after = "1s"
orphans = "stop"
`, socket, addr, balance, delivery, health, quoted(words), tomlEnv(env), s.workers(), ready)
}

// quoted returns words as the elements of a list in TOML.
func quoted(words []string) string {
	var list []string
	for _, w := range words {
		list = append(list, strconv.Quote(w))
	}
	return strings.Join(list, ", ")
}

// tomlEnv returns variables, each "NAME=value", as the entries of a table in TOML.
func tomlEnv(env []string) string {
	var entries []string
	for _, variable := range env {
		name, value, _ := strings.Cut(variable, "=")
		entries = append(entries, fmt.Sprintf("%s = %q", name, value))
	}
	return strings.Join(entries, ", ")
}

// command runs one of lb's own commands.
func (c *control) command(ctx context.Context, args ...string) error {
	_, err := c.ask(ctx, args...)
	return err
}

func (c *control) ask(ctx context.Context, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, c.binary, append(args, "-s", c.socket)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Run(); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot run lb %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String())), ctx.Err())
	}
	return stdout.Bytes(), nil
}

// slot is what lb workers --json tells of one worker.
type slot struct {
	Slot  int
	State string
	PID   int
	// QuickDeaths is how many ended soon after their start, in a row; LastExit how the last one did.
	QuickDeaths int `json:"quick_deaths"`
	LastExit    *struct {
		Reason string
		Lines  []string
	} `json:"last_exit"`
}

// indented are the last of some lines, each on one of its own.
func indented(lines []string) string {
	var b strings.Builder
	for _, line := range lines[max(0, len(lines)-5):] {
		b.WriteString("\n\t" + line)
	}
	return b.String()
}

func (c *control) slots(ctx context.Context) ([]slot, error) {
	out, err := c.ask(ctx, "workers", "app", "--json")
	if err != nil {
		return nil, err
	}
	var answer struct{ Slots []slot }
	if err := json.Unmarshal(out, &answer); err != nil {
		return nil, fmt.Errorf("cannot read the output of lb workers: %w", err)
	}
	return answer.Slots, nil
}

func (c *control) workerPID(ctx context.Context, number int) (int, error) {
	slots, err := c.slots(ctx)
	if err != nil {
		return 0, err
	}
	for _, s := range slots {
		if s.Slot == number && s.PID > 0 {
			return s.PID, nil
		}
	}
	return 0, fmt.Errorf("worker %d does not run", number)
}
