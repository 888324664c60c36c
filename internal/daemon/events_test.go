package daemon

import (
	"testing"

	"github.com/273ebdf9/lb/backends"
)

func TestEvents_NameTheFieldAndWhoChangedIt(t *testing.T) {
	const root = "by root over the control socket"
	for _, x := range []struct {
		change    backends.Change
		text, log string
	}{
		{backends.Change{Field: "weight", From: "50", To: "5", Reason: root}, "weight 50 → 5, " + root, "backend weight changed"},
		{backends.Change{Field: "weight", From: "50", To: "5", Reason: "reload"}, "weight 50 → 5: reload", "backend weight changed"},
		{backends.Change{Field: "admin", From: "ready", To: "drain", Reason: root}, "admin ready → drain, " + root, "backend admin changed"},
		{backends.Change{Field: "max_conns", From: "0", To: "3", Reason: root}, "max_conns 0 → 3, " + root, "backend max_conns changed"},
		{backends.Change{Field: "probe", From: "accept", To: "connect", Reason: "another host"}, "probe accept → connect: another host", "backend probe changed"},
		{backends.Change{Field: "health", From: "up", To: "down", Reason: "connection refused"}, "up → down: connection refused", "backend health changed"},
		{backends.Change{Field: "added", To: "127.0.0.1:1", Reason: root}, "added, 127.0.0.1:1, " + root, "backend added"},
		{backends.Change{Field: "removed", From: "127.0.0.1:1"}, "removed, 127.0.0.1:1", "backend removed"},
		{backends.Change{Pool: "wsgi", Field: "last_resort", From: "false", To: "true", Reason: "no backend of the pool is selectable"},
			"last resort: every backend of wsgi is down", "last resort: every backend of wsgi is down"},
		{backends.Change{Pool: "wsgi", Field: "last_resort", From: "true", To: "false", Reason: "x"},
			"no last resort any more: another backend of wsgi takes connections, or this one is known to be down",
			"no last resort any more: another backend of wsgi takes connections, or this one is known to be down"},
	} {
		if got := changeText(x.change); got != x.text {
			t.Errorf("event of %+v: got %q; want %q", x.change, got, x.text)
		}
		if got := changeMessage(x.change); got != x.log {
			t.Errorf("log line of %+v: got %q; want %q", x.change, got, x.log)
		}
	}
	if got := splitText(map[string]int{"green": 10, "blue": 90}); got != "blue=90 green=10" {
		t.Errorf("a split: got %q; want blue=90 green=10", got)
	}
}
