package build

import "testing"

func TestVersion_OfTheLinkerWins(t *testing.T) {
	defer func(old string) { version = old }(version)
	version = "1.2.3"
	if got := Version(); got != "1.2.3" {
		t.Errorf("version: got %q; want the linker's 1.2.3", got)
	}
	if got := (Facts{Version: "1.2.3", Revision: "0123456789abcdef", Modified: true, Go: "go1", OS: "linux", Arch: "amd64"}).String(); got != "lb 1.2.3 (0123456789ab with changes, go1 linux/amd64)" {
		t.Errorf("version: got %q; want the short commit in it", got)
	}
}
