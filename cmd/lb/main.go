// Command lb is a Layer-4 TCP load balancer for one host's fleet of app processes.
//
// One file holds one group of commands: run.go and what it starts with daemon.go, check.go, version.go; and those that
// only talk to a running lb, through package admin's Client: status.go, conns.go, events.go, weight.go, drain.go,
// members.go and process.go, on cli.go. command.go puts them together.
package main

import "os"

func main() { os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr)) }
