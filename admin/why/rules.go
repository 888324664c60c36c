package why

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// rule finds one cause.
type rule struct {
	cause string
	// symptom is what a person sees, for docs/troubleshooting.md.
	symptom string
	// holds says the cause in words; empty where it is not the cause.
	holds func(*Facts) string
	do    func(*Facts) []string
	// general says that it only repeats what a cause before it says better.
	general bool
}

// rules are in the order of their weight: what the operator wants, then what the worker is, then what lb
// sees of the backend from outside.
var rules = []rule{
	{cause: "drained", symptom: "a backend gets no new connections", holds: drained, do: endDrain},
	{cause: "interpreter", symptom: "a worker never runs: `exit status 126` or `127`", holds: interpreter, do: mendScript},
	{cause: "exec", symptom: "a worker never runs: `exit status 126` or `127`", holds: notStarted, do: mendCommand},
	{cause: "wrong_port", symptom: "a worker runs and stays `starting`", holds: elsewhere, do: listenWhereAsked},
	{cause: "no_heartbeat", symptom: "workers work and go down, one after the other", holds: neverBeat, do: beatOrProbe},
	{cause: "never_ready", symptom: "a worker runs and stays `starting`", holds: neverReady, do: becomeReady},
	{cause: "crash_loop", symptom: "a worker is started again and again", holds: crashes, do: mendProgram},
	{cause: "name", symptom: "a backend is down from the start", holds: unresolved, do: mendName},
	{cause: "proxy_header", symptom: "a backend is down, and works if asked directly", holds: proxyHeader, do: agreeOnHeader},
	{cause: "hung", symptom: "a backend is down, and its process runs", holds: hangs, do: lookWhereItHangs},
	{cause: "refused", symptom: "a backend is down, clients find none", holds: refused, do: startIt},
	{cause: "probe", holds: probeFails, do: readProbe, general: true},
	{cause: "max_conns", symptom: "clients wait, or are refused, though a backend is up", holds: full, do: raiseLimit},
	{cause: "weight", holds: weightless, do: giveWeight},
	{cause: "down", holds: down, do: readHistory, general: true},
	{cause: "starting", holds: starting, do: wait, general: true},
}

func drained(f *Facts) string {
	if b := f.Backend; b != nil && b.Admin != "ready" {
		return fmt.Sprintf("an operator or its agent has it in %s: it gets no new connections, %d are left", b.Admin, b.Active)
	}
	if f.Slot != nil && f.Slot.State == "stopped" {
		return "its worker was stopped by hand"
	}
	return ""
}

func endDrain(f *Facts) []string {
	if f.Backend == nil {
		return []string{"lb start " + f.slotName()}
	}
	return []string{"lb ready " + f.subject()}
}

// unstarted returns why the command of the last worker could not be run; ok says that it could not.
func (f *Facts) unstarted() (reason string, ok bool) {
	if f.Slot == nil || f.Slot.LastExit == nil || f.Worker.Up != nil || f.Slot.Exits["not_started"] == 0 {
		return "", false
	}
	e := f.Slot.LastExit
	for i := len(e.Lines) - 1; i >= 0; i-- {
		if text, found := strings.CutPrefix(e.Lines[i], "lb: cannot run "); found {
			// What comes before the reason is the program, which the reason names again.
			if _, reason, found := strings.Cut(text, ": "); found {
				return reason, true
			}
			return text, true
		}
	}
	if strings.HasPrefix(e.Reason, "exit status 126") || strings.HasPrefix(e.Reason, "exit status 127") || e.PID == 0 {
		return e.Reason, true
	}
	return "", false
}

func interpreter(f *Facts) string {
	if reason, ok := f.unstarted(); ok && strings.Contains(reason, "first line") {
		return "its script cannot be run: " + reason
	}
	return ""
}

func notStarted(f *Facts) string {
	if reason, ok := f.unstarted(); ok && !strings.Contains(reason, "first line") {
		return "its command cannot be run: " + reason
	}
	return ""
}

func mendScript(f *Facts) []string {
	return []string{"mend the first line of the script, or name its interpreter in command of [pools." + f.Pool + ".workers]",
		"lb tries again by itself; at once: lb start " + f.slotName()}
}

func mendCommand(f *Facts) []string {
	return []string{"mend command, dir, user or env of [pools." + f.Pool + ".workers], then: lb reload",
		"lb tries again by itself; at once: lb start " + f.slotName()}
}

// unready reports whether the worker has a process that was never ready.
func (f *Facts) unready() bool {
	return f.Slot != nil && f.Worker.PID > 0 && f.Worker.Up == nil
}

const elsewhereMark = " listens on "

// elsewhere finds a worker that listens, and not where it was asked to.
func elsewhere(f *Facts) string {
	if f.Slot == nil || f.Setup.Place == "" {
		return ""
	}
	if f.unready() && f.Looked && f.Backend != nil && len(f.Listening) > 0 {
		wanted := f.Backend.Address
		for _, l := range f.Listening {
			if samePlace(l.Address, wanted) {
				return ""
			}
		}
		l := f.Listening[0]
		return fmt.Sprintf("pid %d listens on %s, not on %s (%s)", l.PID, l.Address, f.Setup.Place, wanted)
	}
	// What the supervisor saw when it gave a worker up.
	if e := f.Slot.LastExit; e != nil && f.Worker.Up == nil {
		if at := strings.Index(e.Reason, elsewhereMark); at >= 0 {
			from := strings.LastIndex(e.Reason[:at], "pid ")
			if from >= 0 {
				return e.Reason[from:]
			}
		}
	}
	return ""
}

// samePlace reports whether a socket that listens on an address takes connections to another one.
func samePlace(listens, wanted string) bool {
	if listens == wanted {
		return true
	}
	port := func(a string) string { return a[strings.LastIndexByte(a, ':')+1:] }
	return !strings.HasPrefix(listens, "unix:") && !strings.HasPrefix(wanted, "unix:") && port(listens) == port(wanted)
}

func listenWhereAsked(f *Facts) []string {
	return []string{fmt.Sprintf("have the program listen on %s: name it in command or env of [pools.%s.workers], such as PORT = %q", f.Setup.Place, f.Pool, f.Setup.Place),
		"or, for a program that keeps its own port, run it outside of lb and name its address in [[pools." + f.Pool + ".backends]]"}
}

func neverBeat(f *Facts) string {
	if f.Setup.Health != "notify" || f.Backend == nil || !f.Setup.NeverBeat {
		return ""
	}
	if f.Backend.Health == "down" || f.Slot != nil && f.Slot.Exits["hung"] > 0 {
		return "it has never sent WATCHDOG=1"
	}
	return ""
}

func beatOrProbe(f *Facts) []string {
	return []string{fmt.Sprintf("use type = \"http\" or \"accept\" in [pools.%s.health]", f.Pool),
		fmt.Sprintf("or have the worker send WATCHDOG=1 to $NOTIFY_SOCKET at least every %v; lb's libraries do", f.Setup.Interval)}
}

// patience is how long a worker may start until that is worth a word.
const patience = 5 * time.Second

func neverReady(f *Facts) string {
	if f.Slot == nil || f.Worker.Up != nil || elsewhere(f) != "" {
		return ""
	}
	late := f.Slot.Exits["not_ready"] > 0
	if !late && !(f.Worker.State == "starting" && f.Now.Sub(f.Worker.Since) >= min(patience, max(f.Setup.StartTimeout/2, 1))) {
		return ""
	}
	what := "it takes no connection"
	if f.Setup.Ready == "notify" {
		what = "it has never sent READY=1"
	} else if f.Setup.Place != "" {
		what = "it does not listen on " + f.Setup.Place
	}
	return fmt.Sprintf("it is not ready: %s within start_timeout (%v)", what, f.Setup.StartTimeout)
}

func becomeReady(f *Facts) []string {
	if f.Setup.Ready == "notify" {
		return []string{"have the worker send READY=1 to $NOTIFY_SOCKET, or use ready = \"connect\" in [pools." + f.Pool + ".workers]",
			"what it writes meanwhile: lb logs " + f.slotName()}
	}
	return []string{"what it writes meanwhile: lb logs " + f.slotName(),
		"if it only takes long to start, raise start_timeout in [pools." + f.Pool + ".workers]"}
}

func crashes(f *Facts) string {
	if f.Slot == nil || f.Slot.QuickDeaths < 2 || f.Slot.LastExit == nil {
		return ""
	}
	if _, never := f.unstarted(); never || elsewhere(f) != "" || neverReady(f) != "" {
		return "" // it does not crash by itself
	}
	words := lastWords(f.Slot.LastExit)
	if words == "" {
		words = f.Slot.LastExit.Reason
	}
	return fmt.Sprintf("it crashes soon after its start, %d times in a row: %s", f.Slot.QuickDeaths, words)
}

func mendProgram(f *Facts) []string {
	return []string{"all that it wrote: lb logs " + f.slotName(),
		"mend it, then: lb restart " + f.Pool + "; or back to what worked before: lb rollback " + f.Pool}
}

func unresolved(f *Facts) string {
	if f.Backend == nil || !f.Setup.Unresolved {
		return ""
	}
	return fmt.Sprintf("the host name of %s does not resolve", f.Backend.Address)
}

func mendName(f *Facts) []string {
	host := f.Backend.Address
	if at := strings.LastIndexByte(host, ':'); at > 0 {
		host = host[:at]
	}
	return []string{"try: getent hosts " + host, "mend address in [[pools." + f.Pool + ".backends]] or the name server; lb looks it up again every 30 s"}
}

// failure is what the last probe got, or why failed connects of clients took the backend down; empty where it
// did not fail.
func (f *Facts) failure() string {
	b := f.Backend
	switch {
	case b == nil || b.Admin == "maint":
		return ""
	case b.LastProbe != nil && !b.LastProbe.OK:
		if b.LastProbe.Error == "" {
			return "the probe failed"
		}
		return b.LastProbe.Error
	case b.Health == "down":
		return b.Reason
	}
	return ""
}

// silence says that a program took a connection and ended it without an answer.
func silence(text string) bool {
	return strings.Contains(text, "closed the connection") || strings.Contains(text, "connection reset") || strings.Contains(text, "broken pipe")
}

func proxyHeader(f *Facts) string {
	failure := f.failure()
	answered := strings.HasPrefix(failure, "http status 400") || strings.HasPrefix(failure, "expected ")
	switch {
	case f.Setup.Sent == "" && f.Setup.Wanted == "":
		return ""
	case f.Setup.SendProxy != "" && (answered || silence(failure)):
		return fmt.Sprintf("it answers wrong behind the PROXY %s header that lb sends first: %s", f.Setup.SendProxy, failure)
	case f.Setup.SendProxy == "" && silence(failure):
		return "it ends connections unheard, as one does that waits for a PROXY header: " + failure
	}
	return ""
}

func agreeOnHeader(f *Facts) []string {
	if f.Setup.SendProxy != "" {
		return []string{"have it expect the header (nginx: listen ... proxy_protocol; haproxy: accept-proxy)",
			"or take send_proxy out of [pools." + f.Pool + "], then: lb reload"}
	}
	return []string{"if it expects the header, set send_proxy = \"v2\" in [pools." + f.Pool + "], then: lb reload",
		"if not, see in its own log why it ends connections"}
}

func hangs(f *Facts) string {
	failure := f.failure()
	if strings.HasPrefix(failure, "does not accept") || strings.HasPrefix(failure, "timeout after ") && !strings.Contains(failure, "not connected") {
		return "it hangs: " + failure
	}
	return ""
}

func lookWhereItHangs(f *Facts) []string {
	if f.Slot != nil && f.Worker.PID > 0 {
		return []string{"see where it hangs: cat /proc/" + strconv.Itoa(f.Worker.PID) + "/stack, gdb -p, py-spy dump -p",
			"lb restart " + f.slotName() + "; kill_after in [pools." + f.Pool + ".workers] has lb do that by itself"}
	}
	return []string{"see where its process hangs (gdb -p, py-spy dump -p), and start it again"}
}

func refused(f *Facts) string {
	failure := f.failure()
	switch {
	case strings.Contains(failure, "refused"):
		return fmt.Sprintf("nobody listens on %s: connection refused", f.Backend.Address)
	case strings.Contains(failure, "no such file"):
		return fmt.Sprintf("nobody listens on %s: there is no such socket", f.Backend.Address)
	case strings.Contains(failure, "not connected") || strings.Contains(failure, "no route") || strings.Contains(failure, "unreachable"):
		return fmt.Sprintf("%s cannot be reached: %s", f.Backend.Address, failure)
	}
	return ""
}

func startIt(f *Facts) []string {
	if f.Slot != nil {
		return []string{"what it wrote: lb logs " + f.slotName(), "lb restart " + f.slotName()}
	}
	if strings.HasPrefix(f.Backend.Address, "unix:") {
		return []string{"start its process, or mend address in [[pools." + f.Pool + ".backends]]"}
	}
	return []string{"start its process, or mend address in [[pools." + f.Pool + ".backends]]; what listens where: ss -ltnp"}
}

func probeFails(f *Facts) string {
	if failure := f.failure(); failure != "" {
		return "its probe fails: " + failure
	}
	return ""
}

func readProbe(f *Facts) []string {
	return []string{"ask it as the probe does, see below; what a probe sends and wants is set in [pools." + f.Pool + ".health]"}
}

func full(f *Facts) string {
	b := f.Backend
	if b == nil || b.MaxConns == 0 || b.Active < int64(b.MaxConns) {
		return ""
	}
	text := fmt.Sprintf("it has as many connections as max_conns allows: %d of %d", b.Active, b.MaxConns)
	if f.Queue.Length > 0 {
		text += fmt.Sprintf("; %d of %d wait in the queue", f.Queue.Length, f.Queue.Size)
	}
	return text
}

func raiseLimit(f *Facts) []string {
	return []string{"see who holds them: lb conns " + f.subject(),
		"lb set-limit " + f.subject() + " N now, max_conns in the config for good; or more backends"}
}

func weightless(f *Facts) string {
	if b := f.Backend; b != nil && b.Weight == 0 {
		return fmt.Sprintf("its weight is 0 (config %d): it gets no new connections", b.ConfiguredWeight)
	}
	return ""
}

func giveWeight(f *Facts) []string { return []string{"lb weight " + f.subject() + " 100%"} }

func down(f *Facts) string {
	switch {
	case f.Backend != nil && f.Backend.Health == "down":
		return "it is down: " + f.Backend.Reason
	case f.Backend == nil && (f.Slot.State == "waiting" || f.Slot.State == "failed"):
		return "its worker has ended, and waits for its next start: " + f.Slot.Reason
	}
	return ""
}

func readHistory(f *Facts) []string {
	if f.Slot != nil {
		return []string{"what it wrote: lb logs " + f.slotName()}
	}
	return []string{"what happened before: lb events"}
}

func starting(f *Facts) string {
	if f.Backend != nil && f.Backend.Health == "starting" || f.Backend == nil {
		return "it starts: lb waits for its worker to be ready"
	}
	return ""
}

func wait(*Facts) []string { return []string{"wait, or see what it writes: lb logs"} }
