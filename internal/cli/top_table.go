package cli

import (
	"cmp"
	"slices"
	"strings"
)

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

// set replaces the rows. The selection stays at its row as long as that is there; at the newest row of a
// table of what happens it stays at the newest.
func (t *topTable) set(rows []topRow) {
	id := ""
	if row := t.selected(); row != nil && !(t.newest && t.at == 0 && t.sorted < 0) {
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
