package bench

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Table is text in aligned columns. The zero value is an empty table.
type Table struct {
	// Header holds the columns' names.
	Header []string
	// Left is how many columns, from the first on, are aligned to the left; the others are to the right. 0
	// means one.
	Left int

	rows []tableRow
}

type tableRow struct {
	cells []string
	note  string
}

// Add appends a row. It may have fewer cells than the header; more are a bug of the caller.
func (t *Table) Add(cells ...string) { t.AddNoted("", cells...) }

// AddNoted appends a row with a remark behind its last column, as long as it likes.
func (t *Table) AddNoted(note string, cells ...string) {
	if len(cells) > len(t.Header) {
		panic(fmt.Sprintf("BUG: %d cells in a table of %d columns", len(cells), len(t.Header)))
	}
	t.rows = append(t.rows, tableRow{cells, note})
}

// Write writes the table, indented by two blanks, with no blanks at the end of a line.
func (t *Table) Write(w io.Writer) error {
	widths := make([]int, len(t.Header))
	rows := append([]tableRow{{cells: t.Header}}, t.rows...)
	for _, row := range rows {
		for i, cell := range row.cells {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, width := range widths {
			cell := ""
			if i < len(row.cells) {
				cell = row.cells[i]
			}
			pad := strings.Repeat(" ", width-utf8.RuneCountInString(cell))
			if i < max(1, t.Left) {
				line.WriteString("  " + cell + pad)
			} else {
				line.WriteString("  " + pad + cell)
			}
		}
		if row.note != "" {
			line.WriteString("  " + row.note)
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// Number formats v with some digits after the point, or as "-" if there is no number.
func Number(v float64, digits int) string {
	if math.IsNaN(v) {
		return "-"
	}
	return fmt.Sprintf("%.*f", digits, v)
}

// spread formats the range of s.
func (s Summary) spread(digits int) string {
	if math.IsNaN(s.Median) {
		return "-"
	}
	return Number(s.Min, digits) + ".." + Number(s.Max, digits)
}

// Count returns a number of things in words, such as "1 round" or "2 rounds".
func Count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return strconv.Itoa(n) + " " + noun
}
