package proxy

import (
	"testing"
	"unsafe"

	"github.com/273ebdf9/lb/backends"
)

// The allocator gives a large object whole pages: what is left of the last one is lost, in every chunk.
func TestTable_SessionsFillTheirPages(t *testing.T) {
	const page = 8 << 10
	size := int(unsafe.Sizeof([tableChunk]session{}))
	taken := (size + page - 1) / page * page
	if most := 320 * tableChunk; taken > most {
		t.Errorf("%d sessions of %d bytes take %d bytes of memory; want at most %d", tableChunk, unsafe.Sizeof(session{}), taken, most)
	}
}

func TestTable_WaitEndsWithTheSession(t *testing.T) {
	var sessions table
	s := sessions.take()
	w := sessions.wait(s)
	w.tried, w.waiter, w.recheck = append(w.tried, nil, nil), new(backends.Waiter), 1
	if sessions.wait(s) != w {
		t.Error("a second wait of the same session is another one; want the first")
	}
	sessions.put(s)
	next := sessions.take()
	if next.wait != nil || next.tried() != nil || next.waiter() != nil || next.recheck() != 0 {
		t.Errorf("a new session begins with %+v; want no wait", next.wait)
	}
	again := sessions.wait(next)
	if again != w {
		t.Error("the wait of an ended session is not used again")
	}
	if len(again.tried) != 0 || again.waiter != nil || again.recheck != 0 {
		t.Errorf("a used wait begins as %+v; want blank", again)
	}
}

func TestTable_WaitsAllocateNothingInTheLongRun(t *testing.T) {
	var sessions table
	live := make([]*session, 3)
	round := func() {
		for i := range live {
			live[i] = sessions.take()
			w := sessions.wait(live[i])
			w.tried = append(w.tried, nil)
		}
		for _, s := range live {
			sessions.put(s)
		}
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations a round; want 0", n)
	}
}
