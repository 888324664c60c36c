package health

import (
	"fmt"
	"strconv"
	"strings"
)

// statusSet is a set of HTTP statuses.
type statusSet struct {
	text   string // as the config has it
	ranges [][2]int
}

// parseStatusSet parses codes ("204"), ranges ("200-399") and classes ("2xx"), separated by commas.
func parseStatusSet(s string) (statusSet, error) {
	set := statusSet{text: s}
	for item := range strings.SplitSeq(s, ",") {
		item = strings.TrimSpace(item)
		low, high, ok := parseStatusRange(item)
		if !ok {
			return statusSet{}, fmt.Errorf("cannot parse status %q; write \"200\", \"200-399\" or \"2xx\", separated by commas, within 100..599", item)
		}
		set.ranges = append(set.ranges, [2]int{low, high})
	}
	return set, nil
}

func parseStatusRange(s string) (low, high int, ok bool) {
	if len(s) == 3 && strings.EqualFold(s[1:], "xx") && s[0] >= '1' && s[0] <= '5' {
		low = int(s[0]-'0') * 100
		return low, low + 99, true
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	low, okLow := parseStatus(first)
	high, okHigh := parseStatus(last)
	return low, high, okLow && okHigh && low <= high
}

func parseStatus(s string) (code int, ok bool) {
	if len(s) != 3 {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil && n >= 100 && n <= 599
}

func (s statusSet) has(code int) bool {
	for _, r := range s.ranges {
		if code >= r[0] && code <= r[1] {
			return true
		}
	}
	return false
}

// String returns the set as it is in the config.
func (s statusSet) String() string { return s.text }
