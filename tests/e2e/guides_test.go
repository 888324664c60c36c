//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// block is a fenced block of a page. The word behind the language says how the page means it.
type block struct {
	language, word string
	line           int // of its first line of text
	text           string
}

// notRun are the words of shell blocks that no reader would run in a scratch folder, each with the reason.
var notRun = map[string]string{
	"host":   "it changes the machine; the tests of the package and of the unit do so on a machine of their own",
	"source": "it builds the source tree; make e2e has done so",
	"long":   "it takes minutes; the tests of lb bench run it for seconds",
	"part":   "it is part of another program's script",
}

// blocks returns the fenced blocks of a page in their order.
func blocks(t *testing.T, page string) []block {
	t.Helper()
	var found []block
	open := false
	for i, line := range strings.Split(readFile(t, page), "\n") {
		info, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && open:
			open = false
		case fence:
			open = true
			language, word, _ := strings.Cut(info, " ")
			found = append(found, block{language: language, word: word, line: i + 2})
		case open:
			found[len(found)-1].text += line + "\n"
		}
	}
	if open {
		t.Errorf("%s: the last fence is open; want it closed", page)
	}
	return found
}

// pages are README.md and the guides, by their name below the project's folder.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(found) == 0 {
		t.Fatalf("pages in docs: got %q, %v; want some", found, err)
	}
	return append([]string{"../../README.md"}, found...)
}

// A reader has lb and, for README.md, the app processes that the page speaks of. The files, /tmp and /srv are
// the test's own, and so is the network.
const readerScript = `
mount -t tmpfs tmpfs /mnt && mkdir -p /mnt/reader/bin
cp "$LB" /mnt/reader/bin/lb
cp "$SAMPLE" /mnt/reader/sample
mount -t tmpfs tmpfs /srv && mkdir -p /srv/app/current && cp "$SAMPLE" /srv/app/current/app
cd /mnt/reader && cat >app.js && export PATH=$PWD/bin:$PATH HOME=$PWD
mount -t tmpfs tmpfs /tmp
ip link set lo up
unset LB SAMPLE LB_BINARY
answers() { curl -s -m 2 -o /dev/null "http://127.0.0.1:$1/"; }
settle() { until answers 9901 || answers 3000; do sleep 0.05; done; }
terminal() {
	setsid bash -c "exec $1" &
	until answers 8080; do kill -0 $!; sleep 0.05; done
	kill -TERM $!
	wait $!
}
backend() {
	python3 -m http.server "$1" --bind 127.0.0.1 >/dev/null 2>&1 &
	until answers "$1"; do sleep 0.05; done
}
`

const readerApp = "require('http').createServer((q, r) => r.end('hello')).listen(process.env.PORT || 3000)\n"

// script is what a reader types who follows the page from its top.
func script(t *testing.T, page string) (text string, run int) {
	t.Helper()
	var b strings.Builder
	b.WriteString(readerScript)
	if filepath.Base(page) == "README.md" {
		b.WriteString("backend 3001; backend 3002; backend 3003\n")
	}
	b.WriteString("set -x\n")
	for _, block := range blocks(t, page) {
		where := fmt.Sprintf("%s:%d", strings.TrimPrefix(page, "../../"), block.line)
		fmt.Fprintf(&b, ": %s\n", where)
		switch {
		case block.language == "toml" && strings.HasPrefix(block.text, "# lb.toml\n"):
			fmt.Fprintf(&b, "cat >lb.toml <<'END OF FILE'\n%sEND OF FILE\n", block.text)
		case block.language == "toml" && block.word == "added":
			fmt.Fprintf(&b, "cat >>lb.toml <<'END OF FILE'\n%sEND OF FILE\n", block.text)
		case block.language != "sh":
		case block.word == "terminal":
			run++
			for line := range strings.Lines(block.text) {
				command, _, _ := strings.Cut(line, "  #")
				fmt.Fprintf(&b, "terminal '%s'\n", strings.TrimSpace(command))
			}
		case block.word == "":
			run++
			for line := range strings.Lines(block.text) {
				b.WriteString(line)
				if command, _, _ := strings.Cut(line, "  #"); strings.Contains(line, "lb run ") && strings.HasSuffix(strings.TrimSpace(command), "&") {
					b.WriteString("settle\n")
				}
			}
		case notRun[block.word] != "":
			t.Logf("%s is not run: %s", where, notRun[block.word])
		default:
			t.Errorf("%s: got the word %q; want none, terminal, or one of notRun", where, block.word)
		}
	}
	return b.String(), run
}

// Every shell block of README.md and of the guides runs as it stands, in the order of its page up to the end;
// what it started ends with its own process namespace.
func TestGuides_ShellBlocksRunAsTheyStand(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network and folders of its own need root")
	}
	for _, name := range []string{"unshare", "ip", "curl", "python3", "node"} {
		program(t, name)
	}
	total := 0
	for _, page := range pages(t) {
		t.Run(filepath.Base(page), func(t *testing.T) {
			text, run := script(t, page)
			if run == 0 {
				return
			}
			total += run
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, "unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
				"bash", "-euo", "pipefail", "-c", text)
			cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "LB_") }),
				"LB="+lbBinary(t), "SAMPLE="+sampleWorker(t))
			cmd.Stdin = strings.NewReader(readerApp)
			cmd.WaitDelay = time.Second
			dieWithParent(cmd)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("the page's blocks: got %v; want them to run\n%s", err, out)
			}
		})
	}
	if total < 5 {
		t.Errorf("shell blocks that ran: got %d; want those of README.md and of three guides at least", total)
	}
}

// completed is the text of a TOML block with what it leaves out: its table, a listener, a backend.
func completed(b block) string {
	text := b.text
	if b.word == "part" {
		text = "[pools.app]\nhandoff = \"lb\"\n[pools.app.workers]\n" + text
	}
	if !strings.Contains(text, "[listeners.") {
		text += "\n[listeners.web]\nbind = [\"127.0.0.1:8080\"]\npool = \"app\"\n"
	}
	if !strings.Contains(text, "backends]]") && !strings.Contains(text, ".workers]") {
		text += "\n[[pools.app.backends]]\nname = \"w1\"\naddress = \"127.0.0.1:3001\"\n"
	}
	return text
}

// lb check likes every TOML block of README.md and of the guides, and does not like a misspelt key.
func TestGuides_ConfigsAreChecked(t *testing.T) {
	dir, total := tempDir(t), 0
	for _, page := range pages(t) {
		for _, b := range blocks(t, page) {
			if b.language != "toml" {
				continue
			}
			total++
			file := writeFile(t, dir, "lb.toml", completed(b), 0o644)
			if r := run(t, patience, nil, lbBinary(t), "check", "-f", file); r.code != 0 {
				t.Errorf("%s:%d: got exit code %d from lb check; want 0\n%s%s", page, b.line, r.code, r.stdout, r.stderr)
			}
		}
	}
	if total < 5 {
		t.Errorf("TOML blocks: got %d; want more", total)
	}
	file := writeFile(t, dir, "lb.toml", completed(block{text: "[pools.app]\nbalanse = \"first\"\n"}), 0o644)
	if r := run(t, patience, nil, lbBinary(t), "check", "-f", file); r.code == 0 {
		t.Error("lb check of a misspelt key: got exit code 0; want a fault")
	}
}
