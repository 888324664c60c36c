// Command lb is a Layer-4 TCP load balancer for one host's fleet of app processes.
//
// One file holds one command: run.go and what it starts with daemon.go, check.go, status.go, version.go; command.go puts
// them together. Every command but run and check only talks to a running lb, through package admin's Client.
package main

import "os"

func main() { os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr)) }
