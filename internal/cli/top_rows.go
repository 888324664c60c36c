package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

// topSpec is what a tab always has: its name and its columns. The last column is the reason or text of a row:
// it takes what width is left.
type topSpec struct {
	name    string
	columns []topColumn
	// newest says that lb's order is the newest row first.
	newest bool
}

// topColumn is a column of lb top. Where there is not room for all, those with the highest drop go first; 0
// stays.
type topColumn struct {
	title  string
	number bool // is aligned right, and sorted by size
	drop   int
}

var topSpecs = [topTabs]topSpec{
	topBackends: {name: "backends", columns: []topColumn{{"BACKEND", false, 0}, {"STATE", false, 0}, {"FOR", true, 1}, {"WEIGHT", true, 4}, {"SHARE", true, 7},
		{"ACTIVE", true, 2}, {"RATE", true, 3}, {"CONNS", true, 10}, {"ERRORS", true, 5}, {"1ST BYTE P50", true, 8}, {"P99", true, 6}, {"PROBE", false, 9}, {"WHY", false, 0}}},
	topPools: {name: "pools", columns: []topColumn{{"POOL", false, 0}, {"BALANCE", false, 6}, {"SELECTABLE", true, 0}, {"ACTIVE", true, 1}, {"QUEUED", true, 2},
		{"1ST BYTE P50", true, 5}, {"P99", true, 4}, {"LISTENERS", false, 3}, {"WHY", false, 0}}},
	topWorkers: {name: "workers", columns: []topColumn{{"WORKER", false, 0}, {"STATE", false, 0}, {"PID", true, 3}, {"FOR", true, 1}, {"CPU", true, 2}, {"MEMORY", true, 2},
		{"RESTARTS", true, 6}, {"CRASHES", true, 4}, {"BACKEND", false, 7}, {"LAST EXIT", false, 5}, {"WHY", false, 0}}},
	topSessions: {name: "sessions", columns: []topColumn{{"SESSION", false, 1}, {"CLIENT", false, 0}, {"LISTENER", false, 6}, {"BACKEND", false, 0}, {"AGE", true, 0},
		{"IDLE", true, 3}, {"IN", true, 4}, {"OUT", true, 5}, {"STATE", false, 0}}},
	topClients: {name: "clients", columns: []topColumn{{"SESSIONS", true, 0}, {"OLDEST", true, 2}, {"RATE", true, 1}, {"IN", true, 3}, {"OUT", true, 3}, {"CLIENT", false, 0}}},
	topEvents:  {name: "events", newest: true, columns: []topColumn{{"TIME", true, 0}, {"LEVEL", false, 1}, {"SUBJECT", false, 0}, {"TEXT", false, 0}}},
	topLogs:    {name: "logs", newest: true, columns: []topColumn{{"TIME", true, 0}, {"WORKER", false, 0}, {"PID", true, 1}, {"LINE", false, 0}}},
}

// topCell is a cell of lb top. Its text came through printable.Text (newTopCell), the one way in for text
// from lb.
type topCell struct {
	cell
	width int     // in columns of the terminal
	by    float64 // what a column of numbers is sorted by
}

func newTopCell(c cell, by float64) topCell {
	c.text = printable.Text(c.text)
	return topCell{cell: c, width: displaywidth.String(c.text), by: by}
}

// topRow is a row of lb top.
type topRow struct {
	id    string // the same for the same thing in the next answer
	cells []topCell
	// search is what the filter looks at, in lower case.
	search string
	target topTarget
}

// newTopRow makes a row of cells, and of what its columns of numbers are sorted by, in their order.
func newTopRow(tab topTab, id string, cells []cell, by ...float64) topRow {
	row := topRow{id: id, cells: make([]topCell, len(cells))}
	var search strings.Builder
	for i, c := range cells {
		size := 0.0
		if topSpecs[tab].columns[i].number {
			size, by = by[0], by[1:]
		}
		row.cells[i] = newTopCell(c, size)
		search.WriteString(row.cells[i].text + "\n")
	}
	row.search = strings.ToLower(search.String())
	return row
}

// matches reports whether a row has each word of a filter, which is in lower case.
func (r *topRow) matches(filter string) bool {
	for word := range strings.FieldsSeq(filter) {
		if !strings.Contains(r.search, word) {
			return false
		}
	}
	return true
}

func topBackendRows(st *api.Status, now time.Time) (rows []topRow) {
	for i := range st.Pools {
		p := &st.Pools[i]
		for j := range p.Backends {
			b := &p.Backends[j]
			name := p.Name + "/" + b.Name
			cells := backendRow(b, now)
			cells[0].text = name
			row := newTopRow(topBackends, name, cells, now.Sub(b.Since).Seconds(), float64(b.Weight), b.Share, float64(b.Active), valueOf(b.Rate),
				float64(b.Connections), float64(failedConnects(b)), p50(b.FirstByte), p99(b.FirstByte))
			row.target = topTarget{pool: p, backend: b}
			rows = append(rows, row)
		}
	}
	return rows
}

func topPoolRows(st *api.Status) (rows []topRow) {
	for i := range st.Pools {
		p := &st.Pools[i]
		var listeners []string
		for j := range st.Listeners {
			if _, split := st.Listeners[j].Split[p.Name]; split || st.Listeners[j].Pool == p.Name {
				listeners = append(listeners, st.Listeners[j].Name)
			}
		}
		reason, down := "", 0
		for j := range p.Backends {
			if b := &p.Backends[j]; b.Admin == "ready" && b.Health == "down" {
				down++
				reason = b.Name + ": " + why(b)
			}
		}
		if down > 0 {
			reason = fmt.Sprintf("%d down, such as %s", down, reason)
		}
		selectable := cell{text: fmt.Sprintf("%d/%d", p.Selectable, len(p.Backends))}
		switch {
		case p.Selectable == 0:
			selectable.colour = red
		case p.Selectable < len(p.Backends):
			selectable.colour = yellow
		}
		queued := cell{text: fmt.Sprintf("%d/%d", p.Queue.Length, p.Queue.Size)}
		if p.Queue.Length > 0 {
			queued.colour = yellow
		}
		row := newTopRow(topPools, p.Name, []cell{{text: p.Name}, {text: p.Balance}, selectable, number(p.Active), queued,
			{text: secondsText(p50(p.FirstByte))}, {text: secondsText(p99(p.FirstByte))}, {text: strings.Join(listeners, " ")}, {text: reason}},
			float64(p.Selectable), float64(p.Active), float64(p.Queue.Length), p50(p.FirstByte), p99(p.FirstByte))
		row.target = topTarget{pool: p}
		rows = append(rows, row)
	}
	return rows
}

func topWorkerRows(st *api.Status, now time.Time) (rows []topRow) {
	for i := range st.Pools {
		p := &st.Pools[i]
		if p.Workers == nil {
			continue
		}
		for _, w := range workerRows(p.Name, p.Workers, now) {
			var cpu, memory float64
			if w.status.Usage != nil {
				cpu, memory = w.status.Usage.CPU, float64(w.status.Usage.Memory)
			}
			since := 0.0
			if !w.status.Since.IsZero() {
				since = now.Sub(w.status.Since).Seconds()
			}
			row := newTopRow(topWorkers, w.cells[0].text+" "+strconv.Itoa(w.status.PID), w.cells, float64(w.status.PID), since, cpu, memory,
				float64(w.restarts), float64(w.crashes))
			if w.serves {
				row.target = topTarget{pool: p, worker: w.status}
			}
			rows = append(rows, row)
		}
	}
	return rows
}

func topSessionRows(list *api.SessionList) (rows []topRow) {
	for i := range list.Sessions {
		s := &list.Sessions[i]
		c := sessionRow(s)
		row := newTopRow(topSessions, s.ID, []cell{c[0], c[1], c[2], c[3], c[5], c[6], c[7], c[8], c[4]},
			s.Age, s.Idle, float64(s.BytesIn), float64(s.BytesOut))
		row.target = topTarget{session: s}
		rows = append(rows, row)
	}
	return rows
}

func topClientRows(list *api.ClientList) (rows []topRow) {
	for i := range list.Clients {
		x := &list.Clients[i]
		c := clientRow(x)
		rows = append(rows, newTopRow(topClients, x.Address, append(c[1:], c[0]),
			float64(x.Sessions), x.Oldest, valueOf(x.Rate), float64(x.BytesIn), float64(x.BytesOut)))
	}
	return rows
}

// topEventRows are the newest first.
func topEventRows(events []api.Event) (rows []topRow) {
	for i := len(events) - 1; i >= 0; i-- {
		e := &events[i]
		rows = append(rows, newTopRow(topEvents, strconv.FormatUint(e.ID, 10), []cell{{text: e.Time.Local().Format("01-02 15:04:05")}, levelCell(e.Level),
			{text: e.Subject}, {text: e.Text}}, float64(e.Time.UnixNano())))
	}
	return rows
}

// topLineRows takes lines the newest first. Lines of the same moment are told apart by their number, from the
// oldest on.
func topLineRows(lines []topLine) []topRow {
	rows := make([]topRow, len(lines))
	same := 0
	for i := len(lines) - 1; i >= 0; i-- {
		l := &lines[i]
		if same++; i+1 == len(lines) || !lines[i+1].Time.Equal(l.Time) {
			same = 0
		}
		text := strings.ReplaceAll(l.Text, "\t", "    ")
		if l.Cut {
			text += " (cut)"
		}
		rows[i] = newTopRow(topLogs, fmt.Sprint(l.Time.UnixNano(), " ", same), []cell{{text: l.Time.Local().Format("15:04:05.000")},
			{text: l.pool + "/" + strconv.Itoa(l.Slot)}, {text: strconv.Itoa(l.PID)}, {text: text}}, float64(l.Time.UnixNano()), float64(l.PID))
	}
	return rows
}

func valueOf(p *float64) float64 {
	if p == nil {
		return 0
	}
	return *p
}
