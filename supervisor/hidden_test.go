package supervisor

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// hidden calls f where /proc hides the processes of other users, on a thread of its own that ends with it.
func hidden(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: nobody else shall get this thread
		err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		if err == nil {
			err = unix.Mount("proc", "/proc", "proc", 0, "hidepid=2")
		}
		if err == nil {
			// hidepid= knows no limits for group 0; of this thread alone, as unix.Setresgid is not
			unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, 65533, 65533, 65533); e != 0 {
				err = e
			}
		}
		if err == nil {
			head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var caps [2]unix.CapUserData
			err = unix.Capget(&head, &caps[0])
			caps[0].Effective &^= 1 << unix.CAP_SYS_PTRACE
			caps[0].Permitted &^= 1 << unix.CAP_SYS_PTRACE
			err = errors.Join(err, unix.Capset(&head, &caps[0]))
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Skip("cannot hide processes here: ", err)
	}
}

// Such a pool would start each worker a second time after a crash of lb, and leave the first ones to nobody.
func TestPrepare_RefusesAnotherUserWhereProcHidesProcesses(t *testing.T) {
	dir, err := OpenDir(filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	cfg := workerConfig()
	cfg.User = "65534"
	p, err := NewPool("app", cfg, dir)
	if err != nil {
		t.Fatal(err)
	}
	hidden(t, func() { err = p.Prepare() })
	if err == nil || !strings.Contains(err.Error(), "hidepid") {
		t.Errorf("Prepare: got %v; want an error about hidepid", err)
	}
	if hidesOthers() {
		t.Error("hidesOthers: got true where nothing is hidden")
	}
}

func TestTakeOver_FindsTheWorkersThatProcHides(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	start, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	open := func(start uint64) bool {
		fd := openProcess(&savedProcess{PID: cmd.Process.Pid, Start: start}, false)
		unix.Close(fd)
		return fd >= 0
	}
	if !open(start) || open(start+1) {
		t.Error("where it is seen: want it by its start time alone")
	}
	found := false
	hidden(t, func() { found = open(start) })
	if !found {
		t.Error("where it is hidden: got nothing; want the process")
	}
}
