package cli

import (
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
	topLogs
	topTabs
)

// topMode is what keys mean at the moment.
type topMode int

const (
	topLooking    topMode = iota // they move, sort and choose
	topFiltering                 // they are the text of the filter
	topWeighing                  // they are the digits of a weight
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
	// pending is the change that was asked back, in topConfirming, or whose weight is typed, in topWeighing.
	pending *topChange
	typed   string // the digits, in topWeighing

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
	if a.lines != nil {
		m.tables[topLogs].set(topLineRows(a.lines))
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
	case topWeighing:
		m.weighKey(k)
	case topConfirming:
		change := m.pending
		m.mode, m.pending = topLooking, nil
		if k.Key() == tcell.KeyRune && strings.EqualFold(k.Str(), "y") {
			m.message = change.verb + " " + change.label + " …"
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
	case "w":
		m.askBack("weight")
	case "R":
		m.askBack("restart")
	case "k":
		m.askBack("kill")
	default:
		if n := int(r[0]) - '1'; len(r) == 1 && n >= 0 && n < int(topTabs) {
			m.open(topTab(n))
		}
	}
}

func (m *topModel) open(tab topTab) {
	m.tab = tab
	m.stale = tab >= topSessions
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
