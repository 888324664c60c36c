package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/273ebdf9/lb/internal/descriptor"
)

// The names of the files that go along, unique over all pools.
func (p *Pool) notifyFileName() string        { return p.Name + "/notify" }
func (p *Pool) homeFileName() string          { return p.Name + "/home" }
func (p *Pool) listenFile(name string) string { return p.Name + "/" + name + "/listen" }
func (p *Pool) frontFile(name string) string  { return p.Name + "/" + name + "/front" }
func (p *Pool) outputFile(name string) string { return p.Name + "/" + name + "/output" }

// Freeze stops the pool between two events and writes it down, for TakeOver in the program that this process
// becomes by execve(2). The state is JSON. The files are copies, closed at an exec and the caller's to close:
// the notify socket, and each worker's listening socket and output. Whoever executes clears their FD_CLOEXEC,
// and has TakeOver find each under its name.
//
// Until Thaw nothing is read, started, stopped or waited for, no hook is called, and every method but Status,
// Counters and Thaw waits. Nothing is lost meanwhile: messages wait in the notify socket, output in its
// pipes, and who ends is a zombie, so Reap must not run. What is told by SetHealth after Freeze is heard by
// Thaw alone: after an exec, tell it again. A command under way, of Scale for example, goes on after Thaw;
// after an exec its work does, and nobody waits for it.
//
// The error is ErrBusy while a restart is under way, which a freeze would cut off, and ErrStopped when the
// pool ends; all goes on then.
func (p *Pool) Freeze() (state json.RawMessage, files map[string]*os.File, err error) {
	f := &freezing{done: make(chan struct{})}
	ok := p.post(func() {
		if p.freezing != nil {
			f.err = fmt.Errorf("%w: another freeze", ErrBusy)
			close(f.done)
			return
		}
		p.freezing = f
	})
	if !ok {
		return nil, nil, fmt.Errorf("cannot freeze the workers of pool %q: %w", p.Name, ErrStopped)
	}
	select {
	case <-f.done:
		err = f.err
	case <-p.ended:
		err = ErrStopped
	}
	if err != nil {
		return nil, nil, fmt.Errorf("cannot freeze the workers of pool %q: %w", p.Name, err)
	}
	return f.state, f.files, nil
}

// freezing is a freeze that is asked for, and what came of it once done is closed.
type freezing struct {
	done  chan struct{}
	state json.RawMessage
	files map[string]*os.File
	err   error
}

// Thaw has a frozen pool go on exactly as it was. Call it after a Freeze that succeeded, once.
func (p *Pool) Thaw() { p.thaw <- true }

// park freezes the pool, and waits for what is next. It reports whether the pool is to go on.
func (p *Pool) park() (again bool) {
	f := p.freezing
	p.freezing = nil
	f.state, f.files, f.err = p.freeze()
	close(f.done)
	if f.err != nil {
		return true
	}
	if !<-p.thaw {
		return false
	}
	p.resume()
	return true
}

// freeze stops all other goroutines of the pool and writes down what is. If it cannot, all goes on.
func (p *Pool) freeze() (json.RawMessage, map[string]*os.File, error) {
	if err := p.freezable(); err != nil {
		return nil, nil, err
	}
	p.endRound()
	if p.receiver != nil {
		p.receiver.Pause()
	}
	for { // what they told last; a process that is started by it is not attended to yet
		p.running.Wait()
		p.mu.Lock()
		batch := p.inbox
		p.inbox = nil
		p.mu.Unlock()
		if len(batch) == 0 {
			break
		}
		for _, f := range batch {
			f()
		}
	}
	p.settle()
	err := p.freezable()
	var files map[string]*os.File
	if err == nil {
		files, err = p.copyFiles()
	}
	if err != nil {
		p.resume()
		return nil, nil, err
	}
	state, err := json.Marshal(p.freezeState())
	if err != nil {
		panic("BUG: supervisor: a state that is no JSON: " + err.Error())
	}
	return state, files, nil
}

// freezable returns why the pool cannot be frozen now.
func (p *Pool) freezable() error {
	switch {
	case p.ending:
		return ErrStopped
	case p.rollout != nil:
		return fmt.Errorf("%w: %d of %d workers are replaced", ErrBusy, p.rollout.done, p.rollout.total)
	}
	return nil
}

// resume starts all that a freeze has ended.
func (p *Pool) resume() {
	p.round, p.endRound = context.WithCancel(context.Background())
	if p.receiver != nil {
		p.receiver.Resume()
		p.running.Go(func() { p.receiver.Run() })
	}
	for _, w := range p.workers {
		p.attend(w)
	}
}

// copyFiles copies all that must outlive an exec.
func (p *Pool) copyFiles() (map[string]*os.File, error) {
	files := map[string]*os.File{}
	var err error
	add := func(name string, fd int) {
		if err != nil {
			return
		}
		if fd, err = descriptor.Copy(fd); err == nil {
			files[name] = os.NewFile(uintptr(fd), name)
		}
	}
	if p.receiver != nil {
		var f *os.File
		if f, err = p.receiver.File(); err == nil {
			files[p.notifyFileName()] = f
		}
	}
	if home := p.home.Load(); home != nil && err == nil {
		if f, e := home.Open("."); e == nil { // else it is found by name
			files[p.homeFileName()] = f
		}
	}
	for _, w := range p.workers {
		if w.end == nil {
			continue
		}
		name := w.end.backend.Name
		if w.end.fd >= 0 {
			add(p.listenFile(name), w.end.fd)
		}
		if w.end.handoff != "" && w.end.front >= 0 {
			add(p.frontFile(name), w.end.front)
		}
		if w.out != nil && !w.out.ended() && err == nil {
			var f *os.File
			if f, err = descriptor.CopyFile(w.out.file, p.outputFile(name)); err == nil {
				files[f.Name()] = f
			}
		}
	}
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	return files, nil
}

func closeFiles(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}
