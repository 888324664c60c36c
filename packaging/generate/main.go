// Generate writes what the packages carry beside the binary: the manual pages and the completions of shells.
//
//	generate DIR
//
// It makes DIR/man and DIR/completions. The pages of the commands come from the commands themselves, and
// lb.toml(5) from docs/config.md, which comes from the doc comments of the Config types. The output depends
// on its input and SOURCE_DATE_EPOCH alone, so that two builds are equal byte for byte. The working directory
// must be the root of the checkout.
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/273ebdf9/lb/internal/build"
	"github.com/273ebdf9/lb/internal/cli"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: generate DIR")
	}
	if err := generate(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func generate(dir string) error {
	man, completions := filepath.Join(dir, "man"), filepath.Join(dir, "completions")
	for _, d := range []string{man, completions} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	date, err := sourceDate()
	if err != nil {
		return err
	}
	root := cli.Command()
	if err := commandPages(root, man, date); err != nil {
		return err
	}
	if err := configPage(filepath.Join(man, "lb.toml.5"), date); err != nil {
		return err
	}
	return shellCompletions(root, completions)
}

// sourceDate returns the date of SOURCE_DATE_EPOCH
// (https://reproducible-builds.org/specs/source-date-epoch/).
func sourceDate() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q; it must be the seconds since 1970 of the last change", text)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// commandPages writes a page of section 1 for each command: lb.1, lb-run.1, and so on.
func commandPages(root *cobra.Command, dir string, date time.Time) error {
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "1", Date: &date, Source: "lb " + build.Version(), Manual: "lb manual"}
	return doc.GenManTree(root, header, dir)
}

// configPage writes lb.toml(5), the reference of the config file.
func configPage(name string, date time.Time) error {
	text, err := os.ReadFile("docs/config.md")
	if err != nil {
		return err
	}
	_, text, found := bytes.Cut(text, []byte("\n# Configuration\n"))
	if !found {
		return fmt.Errorf("docs/config.md has no heading %q", "# Configuration")
	}
	text = bytes.ReplaceAll(text, []byte("\n## "), []byte("\n# "))
	text = bytes.ReplaceAll(text, []byte("\n### "), []byte("\n## "))
	page := fmt.Appendf(nil, "lb.toml 5 %q %q %q\n=====\n\n# NAME\n\nlb.toml - the configuration file of lb\n\n# DESCRIPTION\n%s\n# SEE ALSO\n\n**lb(1)**, **lb-check(1)**\n",
		date.Format("Jan 2006"), "lb "+build.Version(), "lb manual", text)
	return os.WriteFile(name, md2man.Render(page), 0o644)
}

// shellCompletions writes the scripts by which bash, zsh and fish complete lb's command line.
func shellCompletions(root *cobra.Command, dir string) error {
	for _, shell := range []struct {
		name  string
		write func(file string) error
	}{
		{"lb.bash", func(file string) error { return root.GenBashCompletionFileV2(file, true) }},
		{"_lb", root.GenZshCompletionFile},
		{"lb.fish", func(file string) error { return root.GenFishCompletionFile(file, true) }},
	} {
		if err := shell.write(filepath.Join(dir, shell.name)); err != nil {
			return fmt.Errorf("completions %s: %w", shell.name, err)
		}
	}
	return nil
}
