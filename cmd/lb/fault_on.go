//go:build lbfault

package main

import (
	"errors"
	"os"
	"strings"
)

// fault makes this binary, which only tests build, a bad one: LB_FAULT=STEP:KIND says at which step, "check" or "adopt", it
// fails, and how: "error", "panic", "exit" or "hang".
func fault(step string) error {
	at, kind, _ := strings.Cut(os.Getenv("LB_FAULT"), ":")
	if at != step {
		return nil
	}
	switch kind {
	case "panic":
		panic("a fault that a test wants")
	case "exit":
		os.Exit(3)
	case "hang":
		select {}
	}
	return errors.New("a fault that a test wants")
}
