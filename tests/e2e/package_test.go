//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// buildDeb builds the deb of this tree with a version of its own, and returns its file.
func buildDeb(t *testing.T, version string) string {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("no dpkg to test a deb with: ", err)
	}
	dist := tempDir(t)
	cmd := exec.Command("make", "-C", "../..", "package", "DIST="+dist, "VERSION="+version, "ARCHES="+runtime.GOARCH, "FORMATS=deb")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make package: %v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(dist, "*.deb"))
	if err != nil || len(files) != 1 {
		t.Fatalf("debs that make package built: got %q, %v; want one", files, err)
	}
	return files[0]
}

// The way of a package through its life: installed, started, configured, upgraded with live connections,
// removed, purged.
func TestPackage_InstallsUpgradesWithLiveSessionsAndGoes(t *testing.T) {
	older, newer := buildDeb(t, "0.1.9"), buildDeb(t, "0.2.0")
	stage := tempDir(t)
	stageFile(t, stage, older, "root/older.deb", 0o644)
	stageFile(t, stage, newer, "root/newer.deb", 0o644)
	stageFile(t, stage, sampleWorker(t), "usr/bin/sample", 0o755)
	// The machine's systemd reads the units of a test only; this is where the package puts lb's.
	os.MkdirAll(filepath.Join(stage, "etc/lb-test"), 0o755)
	for _, unit := range []string{"lb.service", "lb.socket"} {
		if err := os.Symlink("/usr/lib/systemd/system/"+unit, filepath.Join(stage, "etc/lb-test", unit)); err != nil {
			t.Fatal(err)
		}
	}
	m := boot(t, stage)
	m.must("mkdir", "-p", "/run/systemd/system")
	// The host may have an lb of its own.
	m.must("rm", "-rf", "/etc/lb", "/var/lib/lb", "/var/log/lb")
	// Or each change has the machine index all of the host's manual pages.
	m.must("rm", "-f", "/var/lib/man-db/auto-update")

	m.must("dpkg", "--install", "/root/older.deb")
	m.must("lb", "check", "-f", "/etc/lb/lb.toml")
	if got := m.must("stat", "-c", "%U:%G %a", "/etc/lb/lb.toml"); got != "root:lb 640" {
		t.Errorf("owner and mode of lb.toml: got %s; want root:lb 640, since it may hold secrets", got)
	}
	for _, file := range []string{"/usr/share/man/man1/lb.1.gz", "/usr/share/man/man5/lb.toml.5.gz", "/usr/share/bash-completion/completions/lb",
		"/usr/share/lb/lb.json", "/usr/share/lb/lb.rules.yml"} {
		m.must("test", "-s", file)
	}
	if state := m.do("systemctl", "is-active", "lb.service").stdout; strings.TrimSpace(state) == "active" {
		t.Error("lb runs once it is installed; want it to wait for its config")
	}
	m.must("systemctl", "start", "lb.service")
	m.until("ActiveState", "active", "StatusText", "0 sessions, 0 of 2 backends up")

	m.config(unitConfig)
	m.must("systemctl", "restart", "lb.service")
	m.until("ActiveState", "active", "StatusText", "0 sessions, 2 of 2 backends up")
	main, workers := m.show("MainPID"), m.pids()
	client := m.hold()
	m.must("dpkg", "--install", "/root/newer.deb")
	client.ask()
	if got := m.must("lb", "status"); !strings.Contains(got, "0.2.0") {
		t.Errorf("lb status after the upgrade: got %q; want the version 0.2.0", got)
	}
	if got := m.show("MainPID"); got != main {
		t.Errorf("main pid after the upgrade: got %s; want the same, %s", got, main)
	}
	if got := m.pids(); got != workers {
		t.Errorf("workers after the upgrade: got %s; want the same, %s", got, workers)
	}
	if got := readFile(t, m.root+"/etc/lb/lb.toml"); got != unitConfig {
		t.Error("lb.toml after the upgrade: got another one; want the operator's")
	}

	m.must("dpkg", "--remove", "lb")
	m.until("ActiveState", "inactive")
	if got := readFile(t, m.root+"/etc/lb/lb.toml"); got != unitConfig {
		t.Error("lb.toml after the removal: got another one; want the operator's")
	}
	m.must("dpkg", "--purge", "lb")
	for _, dir := range []string{"/etc/lb", "/var/lib/lb", "/var/log/lb", "/usr/lib/lb"} {
		if m.do("test", "-e", dir).code == 0 {
			t.Errorf("%s is there after a purge; want it gone", dir)
		}
	}
}
