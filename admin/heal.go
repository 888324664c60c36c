package admin

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"time"
)

// lookEvery is how often lb looks whether its control socket still has its file: one lstat(2).
const lookEvery = 2 * time.Second

// keepSocket looks after the file of a control socket until halt is closed. A file that is gone, or that a
// dead process has replaced, is made again, with another socket behind it: the kernel gives no second name to
// one that listens. A socket that another process serves, and a file that is none, stay as they are, and the
// log says so.
func (s *Server) keepSocket(e *serverEnd, halt <-chan struct{}) {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.healSocket(e)
		case <-halt:
			return
		case <-s.done:
			return
		}
	}
}

// healSocket makes the file of a control socket again if it is not there.
func (s *Server) healSocket(e *serverEnd) {
	c, ok := e.listener.inner().(*controlSocket)
	if !ok || c.ino != 0 && own(c.path, c.dev, c.ino) {
		return
	}
	_, err := os.Lstat(c.path)
	gone := errors.Is(err, fs.ErrNotExist)
	successor, err := listenControl(c.path, c.mode, c.group)
	if err != nil {
		s.report(slog.LevelError, "admin socket", "no client can reach the control socket by its file, which is not lb's any more", "socket", c.path, "error", err)
		return
	}
	if !e.listener.replace(successor) {
		successor.Close()
		return
	}
	if s.src.Log != nil {
		what := "was replaced by one of a process that has ended"
		if gone {
			what = "was removed"
		}
		s.src.Log.Warn("made the control socket again: its file "+what, "socket", c.path)
	}
}
