package logs

import (
	"log/slog"
	"strings"
	"testing"
)

func TestConfig_DefaultIsValid(t *testing.T) {
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Errorf("got %v; want no fault", err)
	}
}

func TestConfig_ValidateFindsEveryFault(t *testing.T) {
	c := Config{Level: "loud", Format: "xml", Output: "lb.log", Access: "logs/", AccessFormat: ""}
	want := strings.Join([]string{
		`level: unknown value "loud"; write "debug", "info", "warn" or "error"`,
		`format: unknown value "xml"; write "text" or "json"`,
		`output: "lb.log" is no absolute path; write one, or "stderr" or "stdout"`,
		`access: "logs/" is no absolute path; write one, or "off", "stdout" or "stderr"`,
		`access_format: unknown value ""; write "text" or "json"`,
	}, "\n")
	if err := c.Validate(); err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}

func TestConfig_ValidateWantsFileForOutput(t *testing.T) {
	for path, want := range map[string]string{
		"/var/log/lb.log": "",
		"/var/log/":       `output: "/var/log/" is a directory; write the path of a file`,
		"/var/\x00":       `output: NUL byte in the path "/var/\x00"`,
		"off":             `output: "off" is no absolute path; write one, or "stderr" or "stdout"`,
	} {
		c := DefaultConfig()
		c.Output = path
		got := ""
		if err := c.Validate(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("output %q: got %q; want %q", path, got, want)
		}
	}
}

func TestConfig_SlogLevel(t *testing.T) {
	for word, want := range map[string]slog.Level{
		"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
	} {
		if got := (&Config{Level: word}).SlogLevel(); got != want {
			t.Errorf("level %q: got %v; want %v", word, got, want)
		}
	}
}
