package logs

import "bytes"

// maxBacklog is how many bytes of lines a backlog keeps.
const maxBacklog = 64 << 10

// backlog keeps the last of the lines that could not be written yet, and counts those before them that it had
// to drop. The last words of a process that ends are the ones that matter most. The zero value is empty.
type backlog struct {
	lines []byte
	part  bool   // the first is the rest of a line whose beginning was written
	torn  bool   // what was written last is the beginning of a line whose rest was dropped
	lost  uint64 // dropped lines that no mark counts yet
}

func (b *backlog) empty() bool { return len(b.lines) == 0 && b.lost == 0 && !b.torn }

// add adds lines, and returns how many older ones it dropped for them.
func (b *backlog) add(lines []byte) (dropped uint64) {
	b.lines = append(b.lines, lines...)
	if len(b.lines) <= maxBacklog {
		return 0
	}
	over := len(b.lines) - maxBacklog
	end := bytes.IndexByte(b.lines[over-1:], '\n')
	if end < 0 { // one line longer than all that there is room for
		end = len(b.lines) - over
	}
	cut := over + end
	dropped = uint64(max(bytes.Count(b.lines[:cut], newline), 1))
	b.lines = append(b.lines[:0], b.lines[cut:]...)
	b.torn, b.part = b.torn || b.part, false
	b.lost += dropped
	return dropped
}

// unwritten puts back, before everything else, what is left of lines after a write that ended early.
func (b *backlog) unwritten(rest []byte, began bool) (dropped uint64) {
	later := b.lines
	b.lines, b.part = nil, began
	dropped = b.add(rest)
	return dropped + b.add(later)
}
