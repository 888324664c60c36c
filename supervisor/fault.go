package supervisor

import (
	"regexp"
	"strings"
	"sync"
	"time"
)

// crash finds, in what a worker writes, the line that says why it crashed: the first one of a dump, which may
// be followed by hundreds.
type crash struct {
	line string
	at   time.Time
	// pending: a Python traceback has begun, whose last line says why.
	pending bool
}

// sameCrash is how soon after the first line of a crash another one belongs to it.
const sameCrash = time.Second

// faultLine matches the first line of a crash, in what Go, Rust, Node, Java, Ruby, C and shells write. It is
// compiled when it is first needed: the shim of every worker begins with lb's own start.
var faultLine = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(faultPattern) })

const faultPattern = `^(?:panic: |fatal error: |SIG[A-Z]+: |thread '.*' panicked at |Exception in thread |` +
	`Uncaught |(?:[\w.:]+)?(?:Error|Exception)(?: \[\w+\])?: |terminate called |Segmentation fault|Assertion .* failed|` +
	`.*: Assertion .* failed|\S+\.rb:\d+:in .*\(\w+\)$|PHP Fatal error)`

// mayBeFault is quick, for the very many lines that are none.
func mayBeFault(text string) bool {
	for _, word := range [...]string{"rror", "xception", "panic", "SIG", "fault", "Assertion", "Uncaught", "terminate called", ".rb:"} {
		if strings.Contains(text, word) {
			return true
		}
	}
	return strings.HasPrefix(text, "fatal")
}

const traceback = "Traceback (most recent call last):"

// see looks at one more line.
func (c *crash) see(text string, now time.Time) {
	switch {
	case text == traceback:
		c.pending = true
	case c.pending:
		if text == "" || text[0] == ' ' || text[0] == '\t' {
			return
		}
		c.pending = false
		c.note(text, now)
	case mayBeFault(text) && faultLine().MatchString(text):
		c.note(text, now)
	}
}

// note takes a first line, unless it is one more of the same crash.
func (c *crash) note(text string, now time.Time) {
	if c.line != "" && now.Sub(c.at) < sameCrash {
		return
	}
	if len(text) > keptBytes {
		text = text[:keptBytes]
	}
	c.line, c.at = strings.ToValidUTF8(strings.Clone(text), "\ufffd"), now
}
