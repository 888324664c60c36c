package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"
	"github.com/gdamore/tcell/v3"
	"github.com/gdamore/tcell/v3/color"

	"github.com/273ebdf9/lb/internal/printable"
)

// topGrid is what lb top draws on: the part of tcell.Screen that it needs. What is put on the screen again
// and again is sent only where it has changed, so nothing flickers.
type topGrid interface {
	Size() (width, height int)
	Fill(r rune, style tcell.Style)
	// Put writes the first character of text, and returns the others and how many columns it took.
	Put(x, y int, text string, style tcell.Style) (rest string, width int)
	ShowCursor(x, y int)
}

// topStyles are the colours of cells, of the terminal's own palette.
var topStyles = map[string]tcell.Style{
	plain:  tcell.StyleDefault,
	red:    tcell.StyleDefault.Foreground(color.Maroon),
	green:  tcell.StyleDefault.Foreground(color.Green),
	yellow: tcell.StyleDefault.Foreground(color.Olive),
	bold:   tcell.StyleDefault.Bold(true),
}

// topHelpText lists the keys.
const topHelpText = `Tab, Right, Left, 1 to 7   the tables
Up, Down, PgUp, PgDn       choose a row; g and G are the first and the last
/                          filter: rows that have every word; Enter keeps it, Esc ends it
s, S                       sort by the next column; the other way round

d                          drain the backend: no new connections, its sessions may finish
r                          ready: it gets new connections again
m                          maint: switch it off
w                          weight: its part of new connections
R                          restart the worker, or all of the pool
k                          kill: close the session, or all of the backend

Ctrl-L                     draw the screen again
q, Ctrl-C                  quit

Each change is asked back. Any key leaves this help.`

// draw draws the whole screen: what lb is, the tabs, the rows, the selected row's reason, and a line for
// messages.
func (m *topModel) draw(g topGrid) {
	w, h := g.Size()
	g.Fill(' ', tcell.StyleDefault)
	g.ShowCursor(-1, -1)
	m.drawHead(g, w)
	m.drawTabs(g, w)
	if m.mode == topHelping {
		for i, line := range strings.Split(topHelpText, "\n") {
			putText(g, 1, 3+i, w-1, line, tcell.StyleDefault)
		}
		return
	}
	t := m.table()
	t.page = max(0, h-5)
	m.drawRows(g, w)
	if row := t.selected(); row != nil && h > 6 {
		last := row.cells[len(row.cells)-1]
		text := row.cells[0].text
		if last.text != "" {
			text += ": " + last.text
		}
		putText(g, 0, h-2, w, text, tcell.StyleDefault.Dim(true))
	}
	m.drawFoot(g, w, h-1)
}

func (m *topModel) drawHead(g topGrid, w int) {
	if m.status == nil {
		return
	}
	x := putText(g, 0, 0, w, statusLine(m.status, m.at), topStyles[bold])
	if m.failure != nil {
		text := fmt.Sprintf("  no answer for %s: %v", shortDuration(time.Since(m.at)), m.failure)
		putText(g, x, 0, w-x, printable.Text(text), topStyles[red])
		return
	}
	for i, n := range m.troubles() {
		if n > 0 {
			x += putText(g, x, 0, w-x, "  "+fmt.Sprintf(topTroubles[i], n), topStyles[red])
		}
	}
}

var topTroubles = [...]string{"%d down", "%d without a backend", "%d workers failed"}

// troubles counts what needs a person: backends that are down, pools that have none to offer, and workers
// that lb has given up for now.
func (m *topModel) troubles() (n [len(topTroubles)]int) {
	for i := range m.status.Pools {
		p := &m.status.Pools[i]
		if p.Selectable == 0 && len(p.Backends) > 0 {
			n[1]++
		}
		for j := range p.Backends {
			if b := &p.Backends[j]; b.Admin == "ready" && b.Health == "down" {
				n[0]++
			}
		}
		if p.Workers == nil {
			continue
		}
		for j := range p.Workers.Slots {
			if p.Workers.Slots[j].State == "failed" {
				n[2]++
			}
		}
	}
	return n
}

func (m *topModel) drawTabs(g topGrid, w int) {
	x := 0
	for tab := range topTabs {
		style := tcell.StyleDefault
		if tab == m.tab {
			style = style.Reverse(true)
		}
		x += putText(g, x, 1, w-x, fmt.Sprintf(" %d %s ", tab+1, topSpecs[tab].name), style)
	}
	t := m.table()
	total := max(len(t.rows), t.total)
	x += putText(g, x, 1, w-x, fmt.Sprintf("  %d of %d", len(t.shown), total), tcell.StyleDefault.Dim(true))
	if t.filter != "" && m.mode != topFiltering {
		putText(g, x, 1, w-x, "  /"+t.filter, topStyles[yellow])
	}
}

// topGap is the space between two columns.
const topGap = 2

// fit returns the widths of the columns on a screen; 0 is not shown.
func (t *topTable) fit(w int) []int {
	last := len(t.columns) - 1
	widths := make([]int, len(t.columns))
	for i := range last {
		widths[i] = min(t.widths[i], max(12, w/3))
	}
	// The last column has at least its title, and a third of the screen where it is that long.
	least := min(t.widths[last], max(len(t.columns[last].title), w/3))
	for {
		left, drop := w-least, -1
		for i := range last {
			if widths[i] == 0 {
				continue
			}
			left -= widths[i] + topGap
			if t.columns[i].drop > 0 && i != t.sorted && (drop < 0 || t.columns[i].drop > t.columns[drop].drop) {
				drop = i
			}
		}
		if left >= 0 || drop < 0 {
			widths[last] = max(0, left+least)
			return widths
		}
		widths[drop] = 0
	}
}

func (m *topModel) drawRows(g topGrid, w int) {
	t := m.table()
	widths := t.fit(w)
	x := 0
	for i, c := range t.columns {
		if widths[i] == 0 {
			continue
		}
		title := c.title
		switch {
		case i == t.sorted && t.descending:
			title += " ↓"
		case i == t.sorted:
			title += " ↑"
		}
		at := x
		if c.number {
			at += max(0, widths[i]-len([]rune(title)))
		}
		putText(g, at, 2, x+widths[i]-at, title, topStyles[bold])
		x += widths[i] + topGap
	}
	t.first = max(0, min(t.first, t.at, len(t.shown)-t.page))
	if t.at >= t.first+t.page {
		t.first = t.at - t.page + 1
	}
	for line := range t.page {
		place := t.first + line
		if place >= len(t.shown) {
			break
		}
		drawRow(g, 3+line, w, t, widths, &t.rows[t.shown[place]], place == t.at)
	}
	if len(t.shown) == 0 && t.page > 0 {
		putText(g, 1, 3, w-1, t.nothing(m.tab), tcell.StyleDefault.Dim(true))
	}
}

// nothing says why there are no rows.
func (t *topTable) nothing(tab topTab) string {
	switch {
	case t.filter != "" && len(t.rows) > 0:
		return "no row has " + t.filter + "; Esc shows all"
	case tab == topWorkers:
		return "lb runs no workers: no pool has [pools.NAME.workers]"
	case tab == topLogs:
		return "no worker that lb runs has written anything"
	default:
		return "no " + t.name
	}
}

func drawRow(g topGrid, y, w int, t *topTable, widths []int, row *topRow, selected bool) {
	if selected {
		for x := range w {
			g.Put(x, y, " ", tcell.StyleDefault.Reverse(true))
		}
	}
	x := 0
	for i := range row.cells {
		c := &row.cells[i]
		if widths[i] == 0 {
			continue
		}
		at := x
		if t.columns[i].number {
			at += max(0, widths[i]-c.width)
		}
		putText(g, at, y, x+widths[i]-at, c.text, topStyles[c.colour].Reverse(selected))
		x += widths[i] + topGap
	}
}

// topFootLines is how many lines a question or a message has at most.
const topFootLines = 4

// drawFoot draws the bottom line: a question, the filter, a message, or the most used keys. What is longer
// than a line takes more of them, upwards.
func (m *topModel) drawFoot(g topGrid, w, y int) {
	switch {
	case m.mode == topConfirming:
		const keys = "y: yes, any other key: no"
		lines := wrapWords(m.pending.question, w)
		if last := &lines[len(lines)-1]; displaywidth.String(*last)+2+len(keys) <= w {
			*last += "  " + keys
		} else {
			lines = append(lines, keys)
		}
		putLines(g, w, y, lines, topStyles[yellow].Bold(true))
	case m.mode == topWeighing:
		lines := wrapWords(m.pending.question+" "+m.typed, w)
		putLines(g, w, y, lines, topStyles[yellow].Bold(true))
		g.ShowCursor(displaywidth.String(lines[len(lines)-1]), y)
	case m.mode == topFiltering:
		x := putText(g, 0, y, w, "/"+m.table().filter, tcell.StyleDefault)
		g.ShowCursor(x, y)
	case m.message != "":
		putLines(g, w, y, wrapWords(printable.Text(m.message), w), topStyles[yellow])
	default:
		putText(g, 0, y, w, "? keys   / filter   s sort   d drain   r ready   m maint   w weight   q quit", tcell.StyleDefault.Dim(true))
	}
}

// putLines writes lines, the last of them at y. Of more than topFootLines the last are shown.
func putLines(g topGrid, w, y int, lines []string, style tcell.Style) {
	lines = lines[max(0, len(lines)-topFootLines):]
	for i, line := range lines {
		at := y - len(lines) + 1 + i
		if at < 0 {
			continue
		}
		for x := range w {
			g.Put(x, at, " ", tcell.StyleDefault)
		}
		putText(g, 0, at, w, line, style)
	}
}

// wrapWords breaks a text into lines of at most so many columns, at spaces where there are any. There is one
// line at least.
func wrapWords(text string, width int) (lines []string) {
	line, took := "", 0
	for _, word := range strings.Split(text, " ") {
		n := displaywidth.String(word)
		if line != "" && took+1+n > width {
			lines, line, took = append(lines, line), "", 0
		}
		if line != "" {
			line, took = line+" ", took+1
		}
		line, took = line+word, took+n
	}
	return append(lines, line)
}

// putText writes text at a place, at most so many columns of it, and returns how many it took. Text that is
// cut ends with "…".
func putText(g topGrid, x, y, width int, text string, style tcell.Style) (took int) {
	for text != "" && took < width {
		rest, n := g.Put(x+took, y, text, style)
		if n == 0 {
			break
		}
		if took+n > width || took+n == width && rest != "" {
			g.Put(x+took, y, "…", style)
			return took + 1
		}
		text, took = rest, took+n
	}
	return took
}
