package logs

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
)

// Config is what lb writes about itself and its sessions, [log]. Take DefaultConfig and change it: the zero
// value is not valid.
type Config struct {
	// Level is the least level of an event that is written: "debug", "info" (default), "warn" or "error".
	Level string `toml:"level"`
	// Format is the form of an event: "text" (default) as key=value pairs, or "json", one object a line. On a
	// terminal "text" is in colours and words for people, unless NO_COLOR is set.
	Format string `toml:"format"`
	// Output is where events go: "stderr" (default), "stdout" or the absolute path of a file, which is
	// appended to.
	Output string `toml:"output"`
	// Access is where the one line a session goes: "off" (default) writes none, else "stdout", "stderr" or
	// the absolute path of a file, which is appended to.
	Access string `toml:"access"`
	// AccessFormat is the form of a session's line: "text" (default) or "json".
	AccessFormat string `toml:"access_format"`
}

// DefaultConfig has every default set.
func DefaultConfig() Config {
	return Config{Level: "info", Format: "text", Output: "stderr", Access: "off", AccessFormat: "text"}
}

// SlogLevel is Level in package slog's terms; one that Validate refuses counts as "info".
func (c *Config) SlogLevel() slog.Level {
	switch c.Level {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Validate finds every fault. Each error's text starts with the key.
func (c *Config) Validate() error {
	return errors.Join(
		oneOf("level", c.Level, "debug", "info", "warn", "error"),
		oneOf("format", c.Format, "text", "json"),
		destination("output", c.Output, "stderr", "stdout"),
		destination("access", c.Access, "off", "stdout", "stderr"),
		oneOf("access_format", c.AccessFormat, "text", "json"))
}

// oneOf finds fault with a value that is none of the words.
func oneOf(key, value string, words ...string) error {
	for _, w := range words {
		if value == w {
			return nil
		}
	}
	return fmt.Errorf("%s: unknown value %q; write %s", key, value, orList(words))
}

// destination finds fault with a value that is none of the words and no absolute path. A relative path would
// depend on the directory that lb was started in.
func destination(key, value string, words ...string) error {
	err := oneOf(key, value, words...)
	switch {
	case err == nil:
		return nil
	case !filepath.IsAbs(value):
		return fmt.Errorf("%s: %q is no absolute path; write one, or %s", key, value, orList(words))
	case strings.HasSuffix(value, "/"):
		return fmt.Errorf("%s: %q is a directory; write the path of a file", key, value)
	case strings.ContainsRune(value, 0):
		return fmt.Errorf("%s: NUL byte in the path %q", key, value)
	}
	return nil
}

// orList is the words quoted, as `"a", "b" or "c"`.
func orList(words []string) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", w)
	}
	return b.String()
}
