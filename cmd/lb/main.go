// Command lb is a Layer-4 TCP load balancer for one host's fleet of app processes.
//
// One file holds one group of commands: run.go and what it starts with daemon.go, check.go, version.go, bench.go; and those that
// only talk to a running lb, through package admin's Client: status.go, conns.go, events.go, weight.go, drain.go,
// members.go, process.go, workers.go and restart.go, on cli.go. fleet.go is where the
// processes that lb runs meet its pools; freeze.go and adopt.go are the two halves of an upgrade. command.go puts them together.
package main

import (
	"fmt"
	"os"

	"github.com/273ebdf9/lb/supervisor"
	"github.com/273ebdf9/lb/upgrade"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == supervisor.ExecArg { // a worker is being started
		supervisor.Exec(os.Args[2:])
	}
	handover, err := upgrade.FromEnv()
	switch {
	case err != nil && handover != nil:
		goBack(handover, newSignals(), err)
	case err != nil:
		fmt.Fprintln(os.Stderr, "lb:", err)
		os.Exit(exitFailed)
	case handover != nil: // this is the new code of an upgrade, and sessions wait
		goOn(handover)
		os.Exit(exitDone)
	}
	os.Exit(execute(os.Args[1:], os.Stdout, os.Stderr))
}
