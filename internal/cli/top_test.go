package cli

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gdamore/tcell/v3"

	"github.com/273ebdf9/lb/admin/api"
)

// paper is a screen that a test reads.
type paper struct {
	lines [][]rune
}

func (p *paper) Size() (int, int) { return len(p.lines[0]), len(p.lines) }

func (p *paper) Fill(r rune, _ tcell.Style) {
	for _, line := range p.lines {
		for x := range line {
			line[x] = r
		}
	}
}

func (p *paper) Put(x, y int, text string, _ tcell.Style) (string, int) {
	r := []rune(text)
	if y < len(p.lines) && x < len(p.lines[y]) {
		p.lines[y][x] = r[0]
	}
	return string(r[1:]), 1
}

func (p *paper) ShowCursor(int, int) {}

// shown returns what a model shows on a screen of that size.
func shown(m *topModel, w, h int) string {
	p := &paper{lines: make([][]rune, h)}
	for y := range p.lines {
		p.lines[y] = make([]rune, w)
	}
	m.draw(p)
	var b strings.Builder
	for _, line := range p.lines {
		b.WriteString(strings.TrimRight(string(line), " ") + "\n")
	}
	return b.String()
}

// press presses keys: those of a text, or one that has a name.
func press(m *topModel, keys ...any) (change *topChange) {
	for _, k := range keys {
		switch k := k.(type) {
		case tcell.Key:
			change = m.key(tcell.NewEventKey(k, "", tcell.ModNone))
		case string:
			for _, r := range k {
				change = m.key(tcell.NewEventKey(tcell.KeyRune, string(r), tcell.ModNone))
			}
		}
	}
	return change
}

func testTop() *topModel {
	m := newTopModel()
	m.take(topAnswer{status: testStatus(), at: noon})
	return m
}

func names(m *topModel) string {
	var ids []string
	for _, i := range m.table().shown {
		ids = append(ids, m.table().rows[i].id)
	}
	return strings.Join(ids, " ")
}

func TestTop_FilterShowsRowsThatHaveEveryWord(t *testing.T) {
	m := testTop()
	press(m, "/DOWN probes")
	if got := names(m); got != "app/w2" {
		t.Errorf("with the filter DOWN probes: got %q; want app/w2", got)
	}
	press(m, tcell.KeyEnter, "q")
	if !m.quit {
		t.Error("q after Enter: got a letter of the filter; want the end")
	}
	press(m, tcell.KeyEscape)
	if got := names(m); got != "app/w1 app/w2 app/w3 app/w4 app/w5" {
		t.Errorf("after Esc: got %q; want all", got)
	}
	press(m, "/nonsense", tcell.KeyEnter)
	if got := shown(m, 100, 20); !strings.Contains(got, "no row has nonsense; Esc shows all") {
		t.Errorf("with a filter that nothing passes: got\n%s", got)
	}
}

func TestTop_SortsNumbersBySizeAndTextByLetters(t *testing.T) {
	m := testTop()
	press(m, "s")
	if got := names(m); got != "app/w1 app/w2 app/w3 app/w4 app/w5" {
		t.Errorf("by name: got %q", got)
	}
	press(m, "sss") // STATE, FOR, WEIGHT
	if got := names(m); got != "app/w3 app/w2 app/w1 app/w4 app/w5" {
		t.Errorf("by weight: got %q; want 1000, 100, 50, 1, 1", got)
	}
	press(m, "S")
	if got := names(m); got != "app/w4 app/w5 app/w1 app/w2 app/w3" {
		t.Errorf("by weight, the other way round: got %q", got)
	}
}

func TestTop_SelectionStaysAtItsBackendWhenRowsMove(t *testing.T) {
	m := testTop()
	press(m, tcell.KeyDown)
	st := testStatus()
	st.Pools[0].Backends[0], st.Pools[0].Backends[1] = st.Pools[0].Backends[1], st.Pools[0].Backends[0]
	m.take(topAnswer{status: st, at: noon})
	if got := m.table().selected().id; got != "app/w2" {
		t.Errorf("selected after the rows have moved: got %q; want app/w2", got)
	}
}

func TestTop_ChangesNothingWithoutYes(t *testing.T) {
	for _, key := range []any{"n", "d", "q", " ", tcell.KeyEnter, tcell.KeyEscape, tcell.KeyDown} {
		m := testTop()
		if change := press(m, "d", key); change != nil || m.quit || !strings.Contains(shown(m, 120, 20), "nothing was changed") {
			t.Errorf("d and then %v: got %+v; want no change, and the screen says so", key, change)
		}
	}
}

func TestTop_YesChangesTheBackendThatWasAskedAbout(t *testing.T) {
	for key, verb := range map[string]string{"d": "drain", "r": "ready", "m": "maint"} {
		m := testTop()
		press(m, tcell.KeyDown, key)
		if got := shown(m, 200, 20); !strings.Contains(got, "app/w2") || !strings.Contains(got, "y: yes") {
			t.Errorf("%s: got\n%s\nwant a question about app/w2", key, got)
		}
		st := testStatus() // the rows move while the user reads
		st.Pools[0].Backends = st.Pools[0].Backends[2:]
		m.take(topAnswer{status: st, at: noon})
		change := press(m, "y")
		if change == nil || change.verb != verb || change.pool != "app" || change.name != "w2" {
			t.Errorf("%s, y: got %+v; want %s app w2", key, change, verb)
		}
	}
}

func TestTop_AsksBackWithWhatADrainLeaves(t *testing.T) {
	m := testTop()
	press(m, "d")
	if got := m.pending.question; !strings.Contains(got, "its 8 sessions may finish") || !strings.Contains(got, "NO OTHER BACKEND") {
		t.Errorf("drain of the only backend that is up: got %q; want its sessions, and that none is left", got)
	}
}

func TestTop_KeepsWhatItKnowsWhileLBDoesNotAnswer(t *testing.T) {
	m := testTop()
	m.take(topAnswer{err: errors.New("nobody answers\x1b[2J")})
	got := shown(m, 200, 20)
	if !strings.Contains(got, "app/w1") || !strings.Contains(got, `nobody answers\x1b[2J`) {
		t.Errorf("after a question that failed: got\n%s\nwant the rows, and why", got)
	}
}

func TestTop_TextFromOutsideIsOnlyText(t *testing.T) {
	const hostile = "\x1b[2J\u202egnp\u009b31m\n<b>"
	st := testStatus()
	st.Version = hostile
	st.Pools[0].Name = hostile
	st.Pools[0].Backends[0].Name = hostile
	st.Pools[0].Backends[0].Reason = hostile
	st.Pools[0].Workers = &api.WorkersStatus{Slots: []api.SlotStatus{{WorkerStatus: api.WorkerStatus{State: hostile, Text: hostile, Backend: hostile},
		LastExit: &api.WorkerExit{Reason: hostile, Lines: []string{hostile}}}}}
	m := newTopModel()
	m.take(topAnswer{
		status:   st,
		at:       noon,
		sessions: &api.SessionList{Sessions: []api.SessionStatus{{ID: hostile, Client: hostile, Listener: hostile, Backend: hostile, State: hostile}}},
		clients:  &api.ClientList{Clients: []api.ClientStatus{{Address: hostile}}},
		events:   []api.Event{{ID: 1, Level: hostile, Subject: hostile, Text: hostile}},
		lines:    []topLine{{hostile, api.WorkerLine{Text: hostile}}},
	})
	check := func(where string) {
		t.Helper()
		got := shown(m, 400, 12)
		if strings.ContainsAny(got, "\x1b\u202e\u009b") || strings.Count(got, "\n") != 12 {
			t.Errorf("%s: got %q; want escapes as text", where, got)
		}
	}
	for tab := range topTabs {
		press(m, fmt.Sprint(int(tab)+1))
		check(topSpecs[tab].name)
		if got := shown(m, 400, 12); tab > topPools && !strings.Contains(got, `\x1b[2J\u202egnp`) {
			t.Errorf("%s: got\n%s\nwant the name", topSpecs[tab].name, got)
		}
	}
	for _, keys := range []string{"1d", "1k", "1w", "3R", "2R", "4k"} {
		press(m, keys)
		if m.pending == nil {
			t.Fatalf("%s: got no question; want one", keys)
		}
		check("the question of " + keys)
		press(m, tcell.KeyEscape)
	}
	press(m, "1dy")
	check("what is done")
	m.message = hostile
	check("a message")
}

func TestTop_FitsEveryScreen(t *testing.T) {
	m := testTop()
	for _, tab := range []string{"1", "2", "3", "4", "5", "6", "7", "?", "d", "1w"} {
		press(m, tab)
		for w := 1; w < 200; w += 7 {
			for h := 1; h < 30; h++ {
				shown(m, w, h)
			}
		}
	}
	press(m, tcell.KeyEscape, "x1")
	if got := shown(m, 60, 20); !strings.Contains(got, "STATE") || !strings.Contains(got, "WHY") || strings.Contains(got, "CONNS") {
		t.Errorf("at 60 columns: got\n%s\nwant the state and the reason, and not what matters least", got)
	}
}

func TestTop_ScrollsThrough1000Backends(t *testing.T) {
	st := testStatus()
	st.Pools[0].Backends = nil
	for i := range 1000 {
		st.Pools[0].Backends = append(st.Pools[0].Backends, api.BackendStatus{Name: fmt.Sprintf("b%d", i), Admin: "ready", Health: "up"})
	}
	m := newTopModel()
	m.take(topAnswer{status: st, at: noon})
	for range 100 {
		shown(m, 100, 25)
		press(m, tcell.KeyPgDn)
	}
	if got := shown(m, 100, 25); !strings.Contains(got, "app/b999") || strings.Contains(got, "app/b979 ") {
		t.Errorf("at the end: got\n%s\nwant the last 20", got)
	}
	press(m, tcell.KeyUp)
	if got := shown(m, 100, 25); !strings.Contains(got, "app/b999") {
		t.Errorf("one up: got\n%s\nwant the same rows", got)
	}
	press(m, "g")
	if got := shown(m, 100, 25); !strings.Contains(got, "app/b0 ") || !strings.Contains(got, "1000 of 1000") {
		t.Errorf("at the start: got\n%s", got)
	}
}

func TestTop_EventsBeginAnewWithAnotherLB(t *testing.T) {
	m := testTop()
	m.take(topAnswer{status: testStatus(), at: noon, events: []api.Event{{ID: 7, Text: "old"}}})
	press(m, "6")
	if q := m.question(); q.tab != topEvents || q.after != 7 || !m.stale {
		t.Errorf("question: got %+v; want events after 7, at once", q)
	}
	st := testStatus()
	st.Started = noon
	m.take(topAnswer{status: st, at: noon})
	if q := m.question(); q.after != 0 || len(m.table().rows) != 0 {
		t.Errorf("after lb was started anew: got %+v; want events from the first on", q)
	}
}

func TestTop_WithoutATerminalSaysWhatToUse(t *testing.T) {
	code, stdout, stderr := lb(t, "top", "-s", "/nonexistent")
	if code != exitFailed || stdout != "" || !strings.Contains(stderr, "lb status --json") || !strings.Contains(stderr, "lb status --watch") {
		t.Errorf("lb top into a pipe: got %d, %q, %q; want 1 and what to use", code, stdout, stderr)
	}
}

func TestTop_KeysChangeWhatTheirRowStandsFor(t *testing.T) {
	st := testStatus()
	st.Pools[0].Workers = &api.WorkersStatus{Slots: []api.SlotStatus{
		{WorkerStatus: api.WorkerStatus{Slot: 0, PID: 77, State: "up"}, Next: &api.WorkerStatus{Slot: 0, PID: 78, State: "joining"}},
		{WorkerStatus: api.WorkerStatus{Slot: 1, PID: 79, State: "up"}},
	}}
	sessions := &api.SessionList{Sessions: []api.SessionStatus{{ID: "41", Client: "192.0.2.1:5", Pool: "app", Backend: "w1", Age: 41}}}
	down := tcell.KeyDown
	for _, c := range []struct {
		keys     []any
		question string
		want     string // empty: nothing is asked
	}{
		{[]any{"1w0", tcell.KeyEnter}, "no new connections then", "weight app/w1 slot - weight 0 session "},
		{[]any{"1w9", tcell.KeyBackspace, "x-250", tcell.KeyEnter}, "from 50 to 250?", "weight app/w1 slot - weight 250 session "},
		{[]any{"1w1001", tcell.KeyEnter}, "", ""},
		{[]any{"1w", tcell.KeyEnter}, "", ""},
		{[]any{"1w50", tcell.KeyEscape}, "", ""},
		{[]any{"3R"}, "then pid 77 finishes", "restart app/ slot 0 weight 0 session "},
		{[]any{"3", down, "R"}, "", ""}, // a successor
		{[]any{"3", down, down, "R"}, "then pid 79 finishes", "restart app/ slot 1 weight 0 session "},
		{[]any{"2R"}, "all workers of app", "restart app/ slot - weight 0 session "},
		{[]any{"2", down, "R"}, "", ""}, // a pool without workers
		{[]any{"1R"}, "", ""},
		{[]any{"4k"}, "of 192.0.2.1:5 to app/w1 ends at once; it is 41s old", "kill / slot - weight 0 session 41"},
		{[]any{"1k"}, "8 sessions are cut at once", "kill app/w1 slot - weight 0 session "},
		{[]any{"2k"}, "", ""},
		{[]any{"3w1"}, "", ""},
	} {
		m := newTopModel()
		m.take(topAnswer{status: st, at: noon, sessions: sessions})
		press(m, c.keys...)
		question := ""
		if m.mode == topConfirming {
			question = m.pending.question
		}
		got := ""
		if change := press(m, "y"); change != nil {
			slot := "-"
			if change.slot != nil {
				slot = fmt.Sprint(*change.slot)
			}
			got = fmt.Sprintf("%s %s/%s slot %s weight %d session %s", change.verb, change.pool, change.name, slot, change.weight, change.session)
		}
		if got != c.want || !strings.Contains(question, c.question) {
			t.Errorf("%v: got %q, asked %q; want %q, asked %q", c.keys, got, question, c.want, c.question)
		}
	}
}

func TestTop_QuestionsAndAnswersAreWholeOnANarrowTerminal(t *testing.T) {
	m := testTop()
	press(m, "d")
	got := strings.Join(strings.Fields(shown(m, 80, 24)), " ")
	if want := "Drain app/w1? It gets no new connections, its 8 sessions may finish. NO OTHER BACKEND OF THE POOL CAN TAKE NEW ONES. y: yes, any other key: no"; !strings.HasSuffix(got, want) {
		t.Errorf("the question at 80 columns: got %q; want it to end in %q", got, want)
	}
	press(m, "n")
	m.message = "cannot drain app/w1: " + strings.Repeat("some reason that is long, ", 6) + "the end"
	if got := strings.Join(strings.Fields(shown(m, 80, 24)), " "); !strings.HasSuffix(got, m.message) {
		t.Errorf("an answer at 80 columns: got %q; want it to end in %q", got, m.message)
	}
}

func TestTop_StaysAtTheNewestLineUntilAnotherIsChosen(t *testing.T) {
	line := func(n int) topLine {
		return topLine{"app", api.WorkerLine{Time: noon.Add(time.Duration(n/2) * time.Second), Slot: 1, PID: 7, Text: fmt.Sprintf("line %d", n)}}
	}
	m := testTop()
	press(m, "7")
	if !m.stale {
		t.Error("in the tab of lines: got no question at once; want one")
	}
	m.take(topAnswer{status: testStatus(), at: noon, lines: []topLine{line(2), line(1), line(0)}})
	m.take(topAnswer{status: testStatus(), at: noon, lines: []topLine{line(3), line(2), line(1)}})
	if row := m.table().selected(); row.cells[3].text != "line 3" {
		t.Errorf("at the newest line, when one is written: got %q; want the new one", row.cells[3].text)
	}
	press(m, tcell.KeyDown)
	m.take(topAnswer{status: testStatus(), at: noon, lines: []topLine{line(5), line(4), line(3), line(2)}})
	if row := m.table().selected(); row.cells[3].text != "line 2" {
		t.Errorf("at an older line, when one is written: got %q; want line 2", row.cells[3].text)
	}
}
