package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gdamore/tcell/v3"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

// topTab is one of the tables of lb top.
type topTab int

const (
	topBackends topTab = iota
	topPools
	topWorkers
	topSessions
	topClients
	topEvents
	topTabs
)

// topMode is what keys mean at the moment.
type topMode int

const (
	topLooking    topMode = iota // they move, sort and choose
	topFiltering                 // they are the text of the filter
	topConfirming                // y makes the change that was asked back; every other key does not
	topHelping                   // each of them ends the help
)

// topEventsKept is how many events lb top remembers.
const topEventsKept = 1000

// topModel is what lb top shows and what its keys do. It knows neither the terminal's size nor lb: draw and
// topProgram do. Not safe for concurrent use.
type topModel struct {
	tab  topTab
	mode topMode
	quit bool
	// stale says that what is shown is not what the tab needs, so that lb should be asked at once.
	stale   bool
	message string
	// pending is the change that was asked back, in mode topConfirming.
	pending *topChange

	tables [topTabs]topTable
	events []api.Event

	at      time.Time // of the last answer
	status  *api.Status
	failure error // of the last question
}

func newTopModel() *topModel {
	m := new(topModel)
	for tab := range m.tables {
		m.tables[tab].topSpec = &topSpecs[tab]
		m.tables[tab].sorted = -1
		m.tables[tab].sortAndFilter("")
	}
	return m
}

// topChange is a change that a key asks for, after it was asked back.
type topChange struct {
	verb       string // "drain", "ready" or "maint"
	pool, name string
	// question says what it will do.
	question string
}

func (m *topModel) table() *topTable { return &m.tables[m.tab] }

// question returns what lb is to be asked for the tab.
func (m *topModel) question() topQuestion {
	q := topQuestion{tab: m.tab}
	if n := len(m.events); n > 0 {
		q.after = m.events[n-1].ID
	}
	return q
}

// take shows an answer. A failed one leaves what was shown, and says so.
func (m *topModel) take(a topAnswer) {
	m.failure = a.err
	if a.err != nil {
		return
	}
	if m.status != nil && !m.status.Started.Equal(a.status.Started) { // another lb, whose events count from 1
		m.events = nil
		m.tables[topEvents].set(nil)
	}
	m.status, m.at = a.status, a.at
	m.tables[topBackends].set(topBackendRows(a.status, a.at))
	m.tables[topPools].set(topPoolRows(a.status))
	m.tables[topWorkers].set(topWorkerRows(a.status, a.at))
	if a.sessions != nil {
		m.tables[topSessions].set(topSessionRows(a.sessions))
		m.tables[topSessions].total = a.sessions.Total
	}
	if a.clients != nil {
		m.tables[topClients].set(topClientRows(a.clients))
		m.tables[topClients].total = a.clients.Total
	}
	if len(a.events) > 0 {
		m.events = append(m.events, a.events...)
		m.events = m.events[max(0, len(m.events)-topEventsKept):]
		m.tables[topEvents].set(topEventRows(m.events))
	}
}

// key does what a key means, and returns the change to make, if it was confirmed.
func (m *topModel) key(k *tcell.EventKey) *topChange {
	if k.Key() == tcell.KeyCtrlC {
		m.quit = true
		return nil
	}
	switch m.mode {
	case topFiltering:
		m.filterKey(k)
	case topConfirming:
		change := m.pending
		m.mode, m.pending = topLooking, nil
		if k.Key() == tcell.KeyRune && strings.EqualFold(k.Str(), "y") {
			m.message = change.verb + " " + printable.Text(change.pool+"/"+change.name) + " …"
			return change
		}
		m.message = "nothing was changed"
	case topHelping:
		m.mode = topLooking
	default:
		m.lookKey(k)
	}
	return nil
}

func (m *topModel) filterKey(k *tcell.EventKey) {
	t := m.table()
	switch k.Key() {
	case tcell.KeyEnter:
		m.mode = topLooking
	case tcell.KeyEscape:
		m.mode = topLooking
		t.setFilter("")
	case tcell.KeyBackspace:
		_, n := utf8.DecodeLastRuneInString(t.filter)
		t.setFilter(t.filter[:len(t.filter)-n])
	case tcell.KeyUp, tcell.KeyDown, tcell.KeyPgUp, tcell.KeyPgDn:
		m.move(k.Key())
	case tcell.KeyRune:
		t.setFilter(t.filter + printable.Text(k.Str()))
	}
}

func (m *topModel) lookKey(k *tcell.EventKey) {
	m.message = ""
	switch k.Key() {
	case tcell.KeyTab, tcell.KeyRight:
		m.open((m.tab + 1) % topTabs)
	case tcell.KeyBacktab, tcell.KeyLeft:
		m.open((m.tab + topTabs - 1) % topTabs)
	case tcell.KeyEscape:
		m.table().setFilter("")
	case tcell.KeyRune:
		m.lookRune(k.Str())
	default:
		m.move(k.Key())
	}
}

func (m *topModel) lookRune(r string) {
	switch r {
	case "q":
		m.quit = true
	case "?":
		m.mode = topHelping
	case "/":
		m.mode = topFiltering
	case "s":
		m.table().sortNext()
	case "S":
		m.table().reverse()
	case "g":
		m.move(tcell.KeyHome)
	case "G":
		m.move(tcell.KeyEnd)
	case "d":
		m.askBack("drain")
	case "r":
		m.askBack("ready")
	case "m":
		m.askBack("maint")
	default:
		if n := int(r[0]) - '1'; len(r) == 1 && n >= 0 && n < int(topTabs) {
			m.open(topTab(n))
		}
	}
}

func (m *topModel) open(tab topTab) {
	m.tab = tab
	m.stale = tab == topSessions || tab == topClients || tab == topEvents
}

// move moves the selection.
func (m *topModel) move(key tcell.Key) {
	t := m.table()
	switch key {
	case tcell.KeyUp:
		t.selectRow(t.at - 1)
	case tcell.KeyDown:
		t.selectRow(t.at + 1)
	case tcell.KeyPgUp:
		t.selectRow(t.at - max(1, t.page))
	case tcell.KeyPgDn:
		t.selectRow(t.at + max(1, t.page))
	case tcell.KeyHome:
		t.selectRow(0)
	case tcell.KeyEnd:
		t.selectRow(len(t.shown) - 1)
	}
}

// askBack asks whether to change the admin state of the backend that is selected now. An answer of lb that
// moves the rows does not change what was asked.
func (m *topModel) askBack(verb string) {
	row := m.table().selected()
	if row == nil || row.backend == nil {
		m.message = verb + " is for a backend: choose one in the tab of backends"
		return
	}
	m.pending = &topChange{verb: verb, pool: row.pool.Name, name: row.backend.Name, question: consequence(verb, row.pool, row.backend)}
	m.mode = topConfirming
}

// consequence says what a change of a backend's admin state will do.
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
	default:
		return fmt.Sprintf("Give %s new connections again? It is %s now; weight %d.", name, b.Health, b.Weight)
	}
}

// topTable is the rows of one tab, which of them are shown, and which one is selected.
type topTable struct {
	*topSpec
	rows []topRow
	// total is how many there are at lb, where that may be more than rows.
	total  int
	filter string
	// sorted is the column that rows are sorted by; -1 is the order of lb. Numbers begin with the largest.
	sorted     int
	descending bool

	shown []int // indexes of rows that pass the filter, in order
	at    int   // the selected one's place in shown
	first int   // the place in shown of the row at the top of the screen
	page  int   // how many rows the screen has; draw sets it
	// widths are those of the columns over all rows shown.
	widths []int
}

// set replaces the rows. The selection stays at its row as long as that is there.
func (t *topTable) set(rows []topRow) {
	id := ""
	if row := t.selected(); row != nil {
		id = row.id
	}
	t.rows = rows
	t.sortAndFilter(id)
}

func (t *topTable) selected() *topRow {
	if t.at >= len(t.shown) {
		return nil
	}
	return &t.rows[t.shown[t.at]]
}

func (t *topTable) selectRow(at int) { t.at = max(0, min(at, len(t.shown)-1)) }

func (t *topTable) setFilter(filter string) {
	id := ""
	if row := t.selected(); row != nil {
		id = row.id
	}
	t.filter = filter
	t.sortAndFilter(id)
}

func (t *topTable) sortNext() {
	t.sorted++
	if t.sorted == len(t.columns) {
		t.sorted = -1
	}
	t.descending = t.sorted >= 0 && t.columns[t.sorted].number
	t.sortAgain()
}

func (t *topTable) reverse() {
	t.descending = !t.descending
	t.sortAgain()
}

// sortAgain sorts the rows after a change of the order, and keeps the selection.
func (t *topTable) sortAgain() { t.setFilter(t.filter) }

// sortAndFilter filters and sorts the rows, measures them, and selects the one of that id again.
func (t *topTable) sortAndFilter(id string) {
	filter := strings.ToLower(t.filter)
	t.shown = t.shown[:0]
	for i := range t.rows {
		if t.rows[i].matches(filter) {
			t.shown = append(t.shown, i)
		}
	}
	switch {
	case t.sorted >= 0:
		number := t.columns[t.sorted].number
		slices.SortStableFunc(t.shown, func(i, j int) int {
			a, b := &t.rows[i].cells[t.sorted], &t.rows[j].cells[t.sorted]
			order := 0
			if number {
				order = cmp.Compare(a.by, b.by)
			} else {
				order = cmp.Compare(a.text, b.text)
			}
			if t.descending {
				return -order
			}
			return order
		})
	case t.descending:
		slices.Reverse(t.shown)
	}
	t.widths = t.widths[:0]
	for _, c := range t.columns {
		t.widths = append(t.widths, len(c.title)+2)
	}
	for _, i := range t.shown {
		for c := range t.rows[i].cells {
			t.widths[c] = max(t.widths[c], t.rows[i].cells[c].width)
		}
	}
	if at := slices.IndexFunc(t.shown, func(i int) bool { return t.rows[i].id == id }); at >= 0 {
		t.at = at
	}
	t.selectRow(t.at)
}
