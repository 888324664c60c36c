package importer

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/config"
)

var update = flag.Bool("update", false, "write testdata/*.toml anew")

// translate is what lb init does with a file of testdata.
func translate(t *testing.T, file string) (*Draft, error) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Base(file)
	switch {
	case strings.HasSuffix(base, ".cfg"):
		return HAProxy(base, text)
	case strings.HasSuffix(base, ".conf"):
		return Nginx(base, text)
	}
	return Ecosystem(base, "/srv/app", text)
}

// Configs as people have them, ten of each program: the draft is as it stands in testdata, and lb takes it.
func TestDraft_IsAsWrittenDownAndLbTakesIt(t *testing.T) {
	for _, pattern := range []string{"*.cfg", "*.conf", "*.json"} {
		files, err := filepath.Glob("testdata/" + pattern)
		if err != nil || len(files) < 10 {
			t.Fatalf("inputs %s: got %d, %v; want ten", pattern, len(files), err)
		}
		for _, file := range files {
			t.Run(filepath.Base(file), func(t *testing.T) {
				draft, err := translate(t, file)
				if err != nil {
					if !strings.Contains(file, "no-backend") {
						t.Fatal(err)
					}
					return
				}
				got := draft.TOML()
				golden := file + ".toml"
				if *update {
					if err := os.WriteFile(golden, got, 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if string(got) != string(want) {
					t.Errorf("the draft differs from %s (go test -update writes it anew):\n%s", golden, got)
				}
				if _, err := config.Parse(golden, got); err != nil && !strings.Contains(file, "no-backend") {
					t.Errorf("lb does not take the draft:\n%v\n%s", err, got)
				}
				for _, n := range draft.Notes() {
					if n.Reason == "" || !strings.Contains(string(got), comment(n.String())) {
						t.Errorf("note %q: want it in the draft with a reason", n)
					}
				}
			})
		}
	}
}

func TestImport_SaysWhatAFileLacks(t *testing.T) {
	for _, test := range []struct{ file, text, want string }{
		{"a.cfg", "global\n maxconn 1\n", "no frontend, backend or listen"},
		{"a.conf", "http { server { listen 80; } }\n", "no stream server"},
		{"a.conf", "stream {", "cannot be read"},
		{"a.json", "{", "not JSON"},
		{"a.json", `{"apps": []}`, "no apps"},
	} {
		file := filepath.Join(t.TempDir(), test.file)
		if err := os.WriteFile(file, []byte(test.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := translate(t, file); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s with %q: got %v; want an error with %q", test.file, test.text, err, test.want)
		}
	}
}

// Whatever is in a file, the draft is TOML, and no text of it gets out of its comment or string.
func FuzzDraft_IsTOML(f *testing.F) {
	for _, pattern := range []string{"*.cfg", "*.conf", "*.json"} {
		files, _ := filepath.Glob("testdata/" + pattern)
		for _, file := range files {
			text, _ := os.ReadFile(file)
			f.Add(text, pattern)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, kind string) {
		var draft *Draft
		var err error
		switch kind {
		case "*.cfg":
			draft, err = HAProxy("x", text)
		case "*.conf":
			draft, err = Nginx("x", text)
		default:
			draft, err = Ecosystem("x", "/", text)
		}
		if err != nil {
			return
		}
		if _, err := config.Parse("x", draft.TOML()); err != nil && strings.Contains(err.Error(), "TOML") {
			t.Errorf("got %v for\n%s", err, draft.TOML())
		}
	})
}
