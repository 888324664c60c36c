// Package plot holds the script and the style sheet that draw charts as SVG in a page of lb.
//
// The page says what to draw; the script draws it when the page has loaded. The page needs nothing from
// elsewhere. The script sets no inline style and has no inline handler, so a page may forbid both in its
// content security policy.
package plot

import (
	_ "embed"
	"encoding/json"
)

// Script draws a [Chart] into each element that has one in its data-plot attribute. It also defines the
// function drawPlot(element, chart), for a page whose figures change.
//
//go:embed plot.js
var Script string

// Style is the style sheet of what Script draws.
//
//go:embed plot.css
var Style string

// Kind is how a chart shows its series.
type Kind string

// The kinds of charts.
const (
	Line  Kind = "line"  // straight lines between the points
	Steps Kind = "steps" // each point holds until the next one
	Bars  Kind = "bars"  // a group of bars for each of the chart's Groups
)

// Chart is what the script draws.
type Chart struct {
	Kind Kind `json:"kind"`
	// Title is what a screen reader says.
	Title string `json:"title"`
	X     Axis   `json:"x"`
	Y     Axis   `json:"y"`
	// Groups are the labels below the groups of bars. Only Bars needs them.
	Groups []string `json:"groups,omitempty"`
	Series []Series `json:"series"`
}

// Axis is one of a chart's axes. Without ticks the script chooses them.
type Axis struct {
	Label string `json:"label"`
	// Log makes the axis logarithmic. Points at or below zero are left out then.
	Log   bool   `json:"log,omitempty"`
	Ticks []Tick `json:"ticks,omitempty"`
}

// Tick is a mark on an axis.
type Tick struct {
	Value float64 `json:"value"`
	Label string  `json:"label"`
}

// Series is one line of a chart, or the bars of one colour.
type Series struct {
	Name string `json:"name"`
	// Color is a CSS colour.
	Color string `json:"color"`
	// Strong draws a thicker line.
	Strong bool `json:"strong,omitempty"`
	// Points are pairs of x and y. For Bars x is the index of the group.
	Points [][2]float64 `json:"points"`
}

// JSON returns the chart as the data-plot attribute has it, before HTML escaping. NaN and infinite numbers
// are an error.
func (c *Chart) JSON() (string, error) {
	text, err := json.Marshal(c)
	return string(text), err
}
