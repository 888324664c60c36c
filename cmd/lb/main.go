// Command lb is a Layer-4 TCP load balancer for one host's fleet of app processes.
//
// The program is three: the shim that starts a worker, the new code of an upgrade, and the command line
// (internal/cli). The command "lb run" is the daemon (internal/daemon), which the command line is given as a
// function.
package main

import (
	"os"

	"github.com/273ebdf9/lb/internal/cli"
	"github.com/273ebdf9/lb/internal/daemon"
	"github.com/273ebdf9/lb/supervisor"
)

func main() {
	if len(os.Args) > 2 && os.Args[1] == supervisor.ExecArg { // a worker is being started
		supervisor.Exec(os.Args[2:])
	}
	if daemon.Upgraded() { // this was the new code of an upgrade, and served until it was stopped
		return
	}
	programs := cli.Programs{Run: daemon.Run, AnswerCheck: daemon.AnswerCheck}
	os.Exit(cli.Execute(os.Args[1:], os.Stdout, os.Stderr, programs))
}
