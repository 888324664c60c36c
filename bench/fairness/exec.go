package fairness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// Exec turns this process into the command, with LISTEN_PID in its environment, which who takes over a
// listening socket compares with its own pid (sd_listen_fds(3)). It returns only with an error.
func Exec(command []string) error {
	if len(command) == 0 {
		return errors.New("cannot run a worker: no command")
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		return fmt.Errorf("cannot run worker: %w", err)
	}
	if err := os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())); err != nil {
		return fmt.Errorf("cannot run worker: %w", err)
	}
	return fmt.Errorf("cannot run worker %q: %w", path, syscall.Exec(path, command, os.Environ()))
}
