//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// makeTree makes a folder with many small files, a large one, an empty one, links and permissions.
func makeTree(t testing.TB) string {
	t.Helper()
	root := filepath.Join(tempDir(t), "tree")
	write := func(name string, size int64, seed byte, mode os.FileMode) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatalf("cannot make the tree: %v", err)
		}
		file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, mode)
		if err != nil {
			t.Fatalf("cannot make the tree: %v", err)
		}
		defer file.Close()
		if _, err := io.Copy(file, noise(size, seed)); err != nil {
			t.Fatalf("cannot make the tree: %v", err)
		}
	}
	for i := range 400 {
		write(fmt.Sprintf("d%d/sub %d/file-%d", i%7, i%11, i), int64(i)*97, byte(i), 0o644)
	}
	write("large", 48<<20, 1, 0o600)
	write("empty", 0, 0, 0o755)
	if err := os.Symlink("d1/nothing", filepath.Join(root, "link")); err != nil {
		t.Fatalf("cannot make the tree: %v", err)
	}
	return root
}

// readTree describes every entry of a folder: its mode, and its checksum or where it links to.
func readTree(t testing.TB, root string) map[string]string {
	t.Helper()
	tree := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		info, err := entry.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case info.Mode().IsRegular():
			file, err := os.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			if content, err = checksum(file); err != nil {
				return err
			}
		case info.Mode()&fs.ModeSymlink != 0:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		tree[name] = fmt.Sprint(info.Mode(), " ", content)
		return nil
	})
	if err != nil {
		t.Fatalf("cannot read the tree %q: %v", root, err)
	}
	return tree
}

func wantSameTree(t testing.TB, got, want string) {
	t.Helper()
	gotTree, wantTree := readTree(t, got), readTree(t, want)
	if maps.Equal(gotTree, wantTree) {
		return
	}
	names := slices.Collect(maps.Keys(wantTree))
	for name := range gotTree {
		if _, ok := wantTree[name]; !ok {
			names = append(names, name)
		}
	}
	for _, name := range names {
		if gotTree[name] != wantTree[name] {
			t.Errorf("transferred entry %q: got %q; want %q", name, gotTree[name], wantTree[name])
		}
	}
}

func TestSSH_TransferOfATree(t *testing.T) {
	server := startSSHD(t)
	l := startLB(t, onePool(t, server.tcp))
	tree := makeTree(t)
	ssh := server.client(t, l.addr())
	host, _, _ := strings.Cut(l.addr(), ":")
	rsync := func(t *testing.T, from, to string) {
		t.Helper()
		// -c: rsync itself compares checksums too; -z is off, so that the bytes stay many.
		r := mustRun(t, 3*patience, program(t, "rsync"), "-a", "-c", "--no-owner", "--no-group",
			"--rsync-path="+program(t, "rsync"), "-e", strings.Join(ssh, " "), from, to)
		if r.stderr != "" {
			t.Errorf("rsync: got %q; want no message", r.stderr)
		}
	}

	sent, fetched := filepath.Join(tempDir(t), "sent"), filepath.Join(tempDir(t), "fetched")
	t.Run("rsync to the server", func(t *testing.T) {
		rsync(t, tree+"/", host+":"+sent+"/")
		wantSameTree(t, sent, tree)
	})
	t.Run("rsync from the server", func(t *testing.T) {
		rsync(t, host+":"+tree+"/", fetched+"/")
		wantSameTree(t, fetched, tree)
	})
	t.Run("ssh both ways", func(t *testing.T) {
		// ssh ends its side of the connection when cat, whose input ends, has answered.
		const size = 64 << 20
		want, _ := checksum(noise(size, 9))
		r := run(t, 3*patience, noise(size, 9), ssh[0], append(ssh[1:], host, "cat")...)
		if r.code != 0 || r.stderr != "" {
			t.Errorf("ssh: got exit code %d and %q; want 0 and no message", r.code, r.stderr)
		}
		if got := mustChecksum(t, strings.NewReader(r.stdout)); got != want {
			t.Errorf("checksum of what came back: got %s; want %s", got, want)
		}
	})
	t.Run("exit code", func(t *testing.T) {
		if r := run(t, patience, nil, ssh[0], append(ssh[1:], host, "exit 7")...); r.code != 7 {
			t.Errorf("exit code of the remote command: got %d; want 7\n%s", r.code, r.stderr)
		}
	})
}
