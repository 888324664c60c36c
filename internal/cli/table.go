package cli

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/273ebdf9/lb/internal/printable"
)

// Colours of a terminal (ECMA-48, "Select Graphic Rendition").
const (
	plain  = ""
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	bold   = "\x1b[1m"
	reset  = "\x1b[0m"
)

// cell is a text and its colour.
type cell struct {
	text   string
	colour string
}

// number is a cell of a whole number.
func number[N int | int64 | uint64](n N) cell { return cell{text: fmt.Sprint(n)} }

// render pads the text to the width, and colours the text but not the padding.
func (c cell) render(width int, right, colour bool) string {
	text := printable.Text(c.text)
	padding := strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text)))
	if colour && c.colour != plain {
		text = c.colour + text + reset
	}
	if right {
		return padding + text
	}
	return text + padding
}

// table has columns as wide as their widest cell.
type table struct {
	right []bool
	rows  [][]cell
}

// newTable makes a table of a header; a column whose title begins with ">" is aligned right.
func newTable(titles ...string) *table {
	t := new(table)
	header := make([]cell, len(titles))
	for i, title := range titles {
		name, right := strings.CutPrefix(title, ">")
		t.right = append(t.right, right)
		header[i] = cell{name, bold}
	}
	t.rows = append(t.rows, header)
	return t
}

func (t *table) add(row ...cell) { t.rows = append(t.rows, row) }

func (t *table) render(colour bool) string {
	widths := make([]int, len(t.right))
	for _, row := range t.rows {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(printable.Text(c.text)))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		var line strings.Builder
		for i, c := range row {
			if i > 0 {
				line.WriteString("  ")
			}
			line.WriteString(c.render(widths[i], t.right[i], colour))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}
