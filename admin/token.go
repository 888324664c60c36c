package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrToken: the file of the token cannot be used.
var ErrToken = errors.New("no token can be read")

// minToken is how many bytes a token has at least: one that is guessed at 64 a second (see wrongTokenDelay)
// for years.
const minToken = 16

// tokenFile is the token of admin.token_file, read again whenever the file has changed. Safe for concurrent
// use.
type tokenFile struct {
	path string

	mu    sync.Mutex
	stamp fileStamp // of the file that sum and err are of
	sum   [sha256.Size]byte
	err   error
}

// fileStamp changes when a file does.
type fileStamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// matches says whether candidate is the token; the time that it takes tells nothing of how near it was. The
// error says that there is no token at the moment.
func (t *tokenFile) matches(candidate string) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.loadLocked(); err != nil {
		return false, err
	}
	sum := sha256.Sum256([]byte(candidate))
	return subtle.ConstantTimeCompare(sum[:], t.sum[:]) == 1, nil
}

// check reads the file.
func (t *tokenFile) check() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.loadLocked()
}

// loadLocked reads the file if it is not the one that was read before.
func (t *tokenFile) loadLocked() error {
	var st unix.Stat_t
	if err := unix.Stat(t.path, &st); err != nil {
		t.stamp, t.err = fileStamp{}, t.fault(&fs.PathError{Op: "stat", Path: t.path, Err: err})
		return t.err
	}
	if stamp := stampOf(&st); stamp != t.stamp {
		t.stamp, t.sum, t.err = t.read()
	}
	return t.err
}

func stampOf(st *unix.Stat_t) fileStamp {
	return fileStamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}
}

// read gives the sum of the token and the stamp of the file it was in, which is the one that was opened.
func (t *tokenFile) read() (stamp fileStamp, sum [sha256.Size]byte, err error) {
	f, err := os.OpenFile(t.path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not hang lb
	if err != nil {
		return stamp, sum, t.fault(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return stamp, sum, t.fault(os.NewSyscallError("fstat", err))
	}
	stamp = stampOf(&st)
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return stamp, sum, t.fault(errors.New("it is no regular file"))
	case st.Mode&0o006 != 0:
		return stamp, sum, t.fault(fmt.Errorf("everybody may read or write it (mode %04o); run chmod 0600 on it", st.Mode&0o777))
	}
	text, err := io.ReadAll(io.LimitReader(f, 4097))
	if err != nil {
		return stamp, sum, t.fault(err)
	}
	token := strings.TrimRight(string(text), "\r\n")
	switch {
	case len(text) > 4096:
		return stamp, sum, t.fault(errors.New("it has more than 4096 bytes; write one line"))
	case len(token) < minToken:
		return stamp, sum, t.fault(fmt.Errorf("the token has %d bytes; write at least %d, such as those of openssl rand -hex 32", len(token), minToken))
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return stamp, sum, t.fault(errors.New("the token has blanks, a second line or letters beyond ASCII; write one word"))
	}
	return stamp, sha256.Sum256([]byte(token)), nil
}

func (t *tokenFile) fault(err error) error {
	return fmt.Errorf("cannot use admin.token_file %q: %w (%w)", t.path, err, ErrToken)
}
