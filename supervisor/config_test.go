package supervisor

import (
	"strings"
	"testing"
	"time"
)

func TestConfig_DefaultsNeedACommandOnly(t *testing.T) {
	cfg := DefaultConfig()
	if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), "command: missing") {
		t.Errorf("got %v; want a missing command", err)
	}
	cfg.Command = []string{"app"}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfig_EachFaultNamesItsKey(t *testing.T) {
	f := func(key string, change func(c *Config)) {
		t.Helper()
		cfg := DefaultConfig()
		cfg.Command = []string{"app"}
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), key+": ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v; want one fault of %s", err, key)
		}
	}
	f("command[1]", func(c *Config) { c.Command = []string{"app", "a\x00b"} })
	f("command", func(c *Config) { c.Command = []string{"app", "{socket}", "{port}"} })
	f("count", func(c *Config) { c.Count = -1 })
	f("count", func(c *Config) { c.Count = 1025 })
	f("env", func(c *Config) { c.Env = map[string]string{"A B": ""} })
	f("env.NOTIFY_SOCKET", func(c *Config) { c.Env = map[string]string{"NOTIFY_SOCKET": ""} })
	f("user", func(c *Config) { c.User = "no such user" })
	f("group", func(c *Config) { c.Group = "no such group" })
	f("umask", func(c *Config) { c.Umask = "088" })
	f("nice", func(c *Config) { c.Nice = 40 })
	f("rlimit_nofile", func(c *Config) { c.RlimitNofile = 3 })
	f("ready", func(c *Config) { c.Ready = "" })
	f("start_timeout", func(c *Config) { c.StartTimeout = 30 })
	f("stop_timeout", func(c *Config) { c.StopTimeout = 0 })
	f("stop_signal", func(c *Config) { c.StopSignal = "" })
	f("stop_signal", func(c *Config) { c.StopSignal = "KILL" })
	f("drain_signal", func(c *Config) { c.DrainSignal = "SIGKILL" })
	f("drain_signal", func(c *Config) { c.DrainSignal = "usr2" })
	f("kill_timeout", func(c *Config) { c.KillTimeout = -time.Second })
	f("kill_after", func(c *Config) { c.KillAfter = 30 })
	f("max_draining", func(c *Config) { c.MaxDraining = -1 })
	f("orphans", func(c *Config) { c.Orphans = "kill" })
	f("recycle.age", func(c *Config) { c.Recycle.Age = 24 })
	f("recycle.jitter", func(c *Config) { c.Recycle.Jitter = 1 })
}

func TestBackoff(t *testing.T) {
	f := func(deaths int, random float64, want time.Duration) {
		t.Helper()
		if got := backoff(deaths, random); got != want {
			t.Errorf("backoff(%d, %v): got %v; want %v", deaths, random, got, want)
		}
	}
	f(1, 0.5, 0)
	f(2, 0.5, time.Second)
	f(2, 0, 800*time.Millisecond)
	f(3, 0.5, 1500*time.Millisecond)
	f(4, 0.5, 2250*time.Millisecond)
	f(11, 0.5, 30*time.Second)
	f(1_000_000, 0, 24*time.Second)
}

// The record is a file: whatever is in it, it is refused or can be used.
func FuzzParseSnapshot(f *testing.F) {
	f.Add([]byte(`{"version":2,"pool":"app","boot":"b","release":{"command":["a"]},"slots":[{"release":{"command":["a"]}}],"workers":[{"slot":0,"role":"current","state":"up","process":{"pid":12,"start":5},"end":{"name":"0.1","path":"/run/0.1.sock"},"release":{"command":["a"]}}]}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		st, err := parseSnapshot(text, "app", oldestFrozen)
		if err != nil {
			return
		}
		for _, w := range st.Workers {
			if w.Process != nil && w.Process.PID <= 1 || !w.Release.runs() || w.Slot < 0 || stateOf(w.State) >= gone {
				t.Errorf("took %+v", w)
			}
		}
	})
}

func TestConfig_SignalsMayHaveSIGInFront(t *testing.T) {
	for _, name := range signals {
		cfg := DefaultConfig()
		cfg.Command, cfg.StopSignal, cfg.DrainSignal = []string{"app"}, "SIG"+name, "SIG"+name
		if err := cfg.Validate(); err != nil {
			t.Errorf("SIG%s: got %v; want no fault", name, err)
		}
		if long, short := signalNamed("SIG"+name), signalNamed(name); long != short {
			t.Errorf("SIG%s: got %v; want %v", name, long, short)
		}
	}
}
