package config

import (
	"fmt"
	"strings"
	"testing"
)

func TestRoom_FollowsTheConfig(t *testing.T) {
	parse := func(listeners, backends, workers int) *Config {
		t.Helper()
		var b strings.Builder
		for i := range listeners {
			fmt.Fprintf(&b, "[listeners.l%d]\nbind = [\"127.0.0.1:%d\"]\npool = \"app\"\n", i, 20000+i)
		}
		b.WriteString("[pools.app]\n")
		if workers > 0 {
			fmt.Fprintf(&b, "[pools.app.workers]\ncommand = [\"true\"]\ncount = %d\n", workers)
		}
		for i := range backends {
			fmt.Fprintf(&b, "[[pools.app.backends]]\naddress = \"127.0.0.1:%d\"\n", 30000+i)
		}
		cfg, err := Parse("lb.toml", []byte(b.String()))
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
	reserved := func(listeners, backends, workers int) int {
		t.Helper()
		room, err := parse(listeners, backends, workers).Room()
		if err != nil {
			t.Fatal(err)
		}
		return room.Reserved
	}
	base := reserved(1, 1, 0)
	if n := reserved(301, 1, 0); n < base+300 {
		t.Errorf("300 listeners more: got %d descriptors; want 300 more than %d at least", n, base)
	}
	if n := reserved(1, 901, 0); n < base+900 {
		t.Errorf("900 backends more: got %d descriptors; want 900 more than %d at least", n, base)
	}
	if n := reserved(1, 1, 100); n < base+2*100*workerFDs {
		t.Errorf("100 workers: got %d descriptors; want those of two processes a slot more than %d", n, base)
	}
}
