package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/gdamore/tcell/v3"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

// topTarget is what the row of a table stands for, and so what keys can change. What does not belong to it is
// nil.
type topTarget struct {
	pool    *api.PoolStatus
	backend *api.BackendStatus
	worker  *api.WorkerStatus // with its slot, unless it is about to end
	session *api.SessionStatus
}

// topChange is a change that a key asks for, after it was asked back.
type topChange struct {
	verb       string // "drain", "ready", "maint", "weight", "restart" or "kill"
	pool, name string // of the backend; name is empty for a pool's workers
	slot       *int   // of the worker
	weight     int
	session    string
	// label names what changes, question says what that will do.
	label, question string
}

// askBack asks whether to make a change to what is selected now. An answer of lb that moves the rows does not
// change what was asked.
func (m *topModel) askBack(verb string) {
	var target topTarget
	if row := m.table().selected(); row != nil {
		target = row.target
	}
	var change *topChange
	var refusal string
	switch verb {
	case "restart":
		change, refusal = askRestart(target)
	case "kill":
		change, refusal = askKill(target)
	default:
		change, refusal = askAdmin(verb, target)
	}
	if change == nil {
		m.message = refusal
		return
	}
	m.pending, m.mode = change, topConfirming
	if verb == "weight" {
		m.typed, m.mode = "", topWeighing
	}
}

// askAdmin makes a change of a backend's admin state or weight, which the caller asks for.
func askAdmin(verb string, target topTarget) (change *topChange, refusal string) {
	pool, b := target.pool, target.backend
	if b == nil {
		return nil, verb + " is for a backend: choose one in the table of backends"
	}
	change = &topChange{verb: verb, pool: pool.Name, name: b.Name, weight: b.Weight, label: printable.Text(pool.Name + "/" + b.Name)}
	change.question = consequence(verb, pool, b)
	return change, ""
}

// consequence says what a change of a backend's admin state or weight will do.
func consequence(verb string, pool *api.PoolStatus, b *api.BackendStatus) string {
	name := printable.Text(pool.Name + "/" + b.Name)
	if b.Admin == verb {
		return fmt.Sprintf("%s is in %s already. Set it again?", name, verb)
	}
	left := pool.Selectable
	if b.Selectable {
		left--
	}
	after := fmt.Sprintf("%d of %s of the pool can still take new ones.", left, count(len(pool.Backends), "backend"))
	if left == 0 {
		after = "NO OTHER BACKEND OF THE POOL CAN TAKE NEW ONES."
	}
	switch verb {
	case "drain":
		return fmt.Sprintf("Drain %s? It gets no new connections, its %s may finish. %s", name, count(int(b.Active), "session"), after)
	case "maint":
		return fmt.Sprintf("Switch %s off? No new connections and no probes, its %s may finish. %s", name, count(int(b.Active), "session"), after)
	case "weight":
		return fmt.Sprintf("Weight of %s, 0 to 1000 (now %s):", name, weightText(b))
	default:
		return fmt.Sprintf("Give %s new connections again? It is %s now; weight %d.", name, b.Health, b.Weight)
	}
}

// askRestart makes a restart of a worker, or of all of a pool's.
func askRestart(target topTarget) (change *topChange, refusal string) {
	pool := target.pool
	switch {
	case pool == nil || pool.Workers == nil:
		return nil, "restart is for workers that lb runs: choose one in the table of workers, or a pool that has them"
	case target.worker != nil:
		slot := target.worker.Slot
		label := printable.Text(pool.Name) + "/" + strconv.Itoa(slot)
		return &topChange{verb: "restart", pool: pool.Name, slot: &slot, label: label, question: fmt.Sprintf(
			"Restart %s? A successor starts and must be ready; then pid %d finishes its sessions and ends.", label, target.worker.PID)}, ""
	case target.backend != nil:
		return nil, "restart is for workers: choose one in the table of workers"
	}
	return &topChange{verb: "restart", pool: pool.Name, label: printable.Text(pool.Name), question: fmt.Sprintf(
		"Restart all workers of %s? One after the other, each successor ready first; %s replaced.",
		printable.Text(pool.Name), are(len(pool.Workers.Slots), "worker"))}, ""
}

// are returns "1 worker is" or "3 workers are".
func are(n int, noun string) string {
	if n == 1 {
		return "1 " + noun + " is"
	}
	return count(n, noun) + " are"
}

// askKill makes the closing of a session, or of all of a backend's.
func askKill(target topTarget) (change *topChange, refusal string) {
	if s := target.session; s != nil {
		return &topChange{verb: "kill", session: s.ID, label: "session " + printable.Text(s.ID), question: fmt.Sprintf(
			"Close session %s? The connection of %s to %s ends at once; it is %s old.", printable.Text(s.ID), printable.Text(s.Client),
			printable.Text(s.Pool+"/"+s.Backend), shortDuration(seconds(s.Age)))}, ""
	}
	pool, b := target.pool, target.backend
	if b == nil {
		return nil, "kill is for a session, or all of a backend's: choose one in the table of sessions or backends"
	}
	name := printable.Text(pool.Name + "/" + b.Name)
	return &topChange{verb: "kill", pool: pool.Name, name: b.Name, label: name, question: fmt.Sprintf(
		"Close all sessions of %s? %s cut at once, and their clients may come back at once: lb kill %s --over 30s spreads it.",
		name, are(int(b.Active), "session"), name)}, ""
}

// weighKey takes a digit of a weight, and after Enter asks back.
func (m *topModel) weighKey(k *tcell.EventKey) {
	switch k.Key() {
	case tcell.KeyBackspace:
		m.typed = m.typed[:max(0, len(m.typed)-1)]
	case tcell.KeyRune:
		if r := k.Str(); r >= "0" && r <= "9" && len(r) == 1 && len(m.typed) < 4 {
			m.typed += r
		}
	case tcell.KeyEnter:
		n, err := strconv.Atoi(m.typed)
		if err != nil || n > 1000 {
			m.mode, m.pending, m.message = topLooking, nil, "no weight: write a whole number from 0 to 1000; nothing was changed"
			return
		}
		p := m.pending
		p.question = fmt.Sprintf("Change the weight of %s from %d to %d?", p.label, p.weight, n)
		if n == 0 {
			p.question += " It gets no new connections then."
		}
		p.weight, m.mode = n, topConfirming
	case tcell.KeyEscape:
		m.mode, m.pending, m.message = topLooking, nil, "nothing was changed"
	}
}

// perform makes a change and returns how it ended, for the line at the bottom.
func (p *topProgram) perform(ctx context.Context, change topChange) string {
	limited, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var st *api.BackendStatus
	var done string
	var warnings []string
	var err error
	switch change.verb {
	case "drain", "ready", "maint":
		st, err = p.client.SetAdmin(limited, change.pool, change.name, change.verb)
	case "weight":
		st, err = p.client.SetWeight(limited, change.pool, change.name, change.weight)
	case "restart":
		err = p.client.Restart(limited, change.pool, api.RestartRequest{Slot: change.slot, NoWait: true}, func(s api.RestartStep) error {
			warnings = append(warnings, s.Warnings...)
			return nil
		})
		done = change.label + ": the restart has begun; the events show its outcome"
	case "kill":
		var result *api.KillResult
		result, err = p.client.Kill(limited, api.SessionFilter{ID: change.session, Pool: change.pool, Backend: change.name}, 0)
		if err == nil {
			done = "closed " + count(result.Killed, "session")
		}
	default:
		panic("BUG: lb top cannot " + change.verb)
	}
	if err != nil {
		return fmt.Sprintf("cannot %s %s: %v", change.verb, change.label, err)
	}
	if st != nil {
		done, warnings = backendLine(change.pool, st), st.Warnings
	}
	for _, warning := range warnings {
		done += "; warning: " + warning
	}
	return done
}
