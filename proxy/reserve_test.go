package proxy_test

import (
	"testing"

	"github.com/273ebdf9/lb/proxy"
)

func TestReserve_LeavesDescriptorsToTheRestOfTheProcess(t *testing.T) {
	cfg := proxy.DefaultConfig()
	p, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(t.Context())
	few, err := p.Reserve(100)
	if err != nil {
		t.Fatal(err)
	}
	if more, err := p.Reserve(300); err != nil || more != few-100 || p.MaxSessions() != more {
		t.Errorf("200 descriptors more for the rest: got %d sessions, %v, and MaxSessions %d; want 100 fewer than %d", more, err, p.MaxSessions(), few)
	}
	if _, err := p.Reserve(1 << 31); err == nil || p.MaxSessions() != few-100 {
		t.Errorf("more than there are: got %v, and MaxSessions %d; want an error, and nothing changed", err, p.MaxSessions())
	}
	cfg.MaxSessions = 5
	limited, err := proxy.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer limited.Stop(t.Context())
	if n, err := limited.Reserve(100); err != nil || n != 5 {
		t.Errorf("max_sessions 5: got %d, %v; want 5", n, err)
	}
}
