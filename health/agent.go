package health

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/273ebdf9/lb/backends"
)

// maxLine bounds an agent's line, in bytes.
const maxLine = 1024

// agentLine is a parsed line of an agent: the last word of each kind, as in HAProxy. What the line does not
// mention is nil or empty, and stays as it is.
//
// The protocol is HAProxy's agent-check (configuration manual, section 5.2): words separated by spaces, tabs
// or commas, in any order and either case; after a "#" a description of the health word.
type agentLine struct {
	health  string // "up", "down", "fail" or "stopped"
	about   string // the description, as the agent wrote it
	admin   *backends.AdminState
	percent *int   // of the configured weight; 0 takes no new connections
	maxConn *int   // 0 is no limit
	unknown string // the first word that is none of these
}

// parseAgentLine parses a line without its end. It refuses no line: it puts the first word that it does not
// know in unknown, and the others count.
func parseAgentLine(line string) agentLine {
	var a agentLine
	words, about, _ := strings.Cut(line, "#")
	a.about = strings.Trim(about, " \t")
	for word := range strings.FieldsFuncSeq(words, func(r rune) bool { return r == ' ' || r == '\t' || r == ',' }) {
		if !a.word(word) && a.unknown == "" {
			a.unknown = word
		}
	}
	return a
}

// word parses one word. It reports whether it knows the word.
func (a *agentLine) word(word string) bool {
	lower := strings.ToLower(word)
	switch lower {
	case "up", "down", "fail", "stopped":
		a.health = lower
		return true
	}
	if state, err := backends.ParseAdminState(lower); err == nil {
		a.admin = &state
		return true
	}
	if digits, ok := strings.CutSuffix(lower, "%"); ok {
		return parseCount(digits, &a.percent)
	}
	if digits, ok := strings.CutPrefix(lower, "maxconn:"); ok {
		return parseCount(digits, &a.maxConn)
	}
	return false
}

// parseCount parses a decimal number up to 2^31-1 without a sign. It reports whether digits is one.
func parseCount(digits string, to **int) bool {
	n, err := strconv.ParseUint(digits, 10, 31)
	if err != nil {
		return false
	}
	count := int(n)
	*to = &count
	return true
}

// understood reports whether any word was known.
func (a *agentLine) understood() bool {
	return a.health != "" || a.admin != nil || a.percent != nil || a.maxConn != nil
}

// weight returns the weight that the percentage stands for, at most the largest one. HAProxy, rounding down,
// differs where backends.PercentOf does not make 0.
func (a *agentLine) weight(configured int) int {
	w, err := backends.PercentOf(configured, *a.percent) // not negative: see parseCount
	if err != nil {
		return backends.MaxWeight
	}
	return w
}

// String returns the line in words, for a reason.
func (a *agentLine) String() string {
	var said []string
	if a.health != "" {
		said = append(said, a.health)
	}
	if a.admin != nil {
		said = append(said, a.admin.String())
	}
	if a.percent != nil {
		said = append(said, fmt.Sprintf("%d%%", *a.percent))
	}
	if a.maxConn != nil {
		said = append(said, fmt.Sprintf("maxconn:%d", *a.maxConn))
	}
	s := "agent says " + strings.Join(said, " ")
	if len(said) == 0 {
		s = "agent says nothing"
	}
	if a.about != "" {
		s += ": " + quote([]byte(a.about))
	}
	if a.unknown != "" {
		s += "; unknown word " + quote([]byte(a.unknown))
	}
	return s
}
