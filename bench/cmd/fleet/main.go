// Command fleet simulates many lbs in front of many hosts, in virtual time, and reports how evenly each way
// of choosing spreads connections. See docs/fleet.md.
package main

import (
	"flag"
	"fmt"
	"os"

	"github.com/273ebdf9/lb/bench/fleet"
)

func main() {
	quick := flag.Bool("quick", false, "the small cases alone, under a minute")
	seed := flag.Uint64("seed", 1, "what all randomness comes from")
	page := flag.String("report", "", "write a page with plots to this file")
	flag.Parse()
	if err := run(*seed, *quick, *page); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(seed uint64, quick bool, page string) error {
	st := fleet.Study{Seed: seed, Quick: quick}
	n := 0
	if err := st.Run(func(text string) { n++; fmt.Fprintf(os.Stderr, "%3d  %s\n", n, text) }); err != nil {
		return err
	}
	if err := st.WriteText(os.Stdout); err != nil || page == "" {
		return err
	}
	f, err := os.Create(page)
	if err != nil {
		return err
	}
	if err := st.WriteHTML(f); err != nil {
		return err
	}
	return f.Close()
}
