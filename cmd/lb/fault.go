//go:build !lbfault

package main

// fault is where a test build fails on purpose; see fault_on.go.
func fault(string) error { return nil }
