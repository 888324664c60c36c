// Command lb is a Layer-4 TCP load balancer for one host's fleet of app processes.
//
// One file holds one group of commands: run.go and what it starts with daemon.go, check.go, version.go; and those that
// only talk to a running lb, through package admin's Client: status.go, conns.go, events.go, weight.go, drain.go,
// members.go, process.go, workers.go and restart.go, on cli.go. fleet.go is where the
// processes that lb runs meet its pools. command.go puts them together.
package main

import (
	"os"

	"github.com/273ebdf9/lb/supervisor"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == supervisor.ExecArg { // a worker is being started
		supervisor.Exec(os.Args[2:])
	}
	os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr))
}
