package backends

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// entry is the directory entry of a Unix socket, opened without following it.
type entry struct {
	path string
	fd   int
	stat unix.Stat_t
	// controller says who else decides what the name leads to: "" when only root and lb's user do.
	controller string
	// linked: the way led over a symbolic link that another user may have made.
	linked bool
	// mounted: it is a mount of its own, of a socket that is somewhere else.
	mounted bool
	// shared: it lies in a directory with the sticky bit (/tmp), in which everybody may make entries.
	shared bool
}

func (e *entry) close() { unix.Close(e.fd) }

// proc returns a name for the entry that no other process can point elsewhere (proc(5), /proc/pid/fd).
func (e *entry) proc() string { return "/proc/self/fd/" + strconv.Itoa(e.fd) }

// maxLinks is how many symbolic links a path may lead over (path_resolution(7)).
const maxLinks = 40

// openEntry walks to path from the root, one name at a time, and notes who may change the way. It returns a
// refusal for what lb never connects to: a symbolic link at the end, a file that is no socket, and whatever
// lies behind /proc, whose links lead into other processes' roots. An errno is what connect(2) would say as
// well.
func openEntry(path string) (*entry, unix.Errno, string) {
	e := &entry{path: path}
	at, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errnoOf(err), ""
	}
	defer func() { unix.Close(at) }()
	var device uint64
	enter := func(st *unix.Stat_t, name string) {
		device = st.Dev
		e.shared = false
		switch {
		case !trusted(st.Uid):
			e.control(name + " belongs to " + userText(st.Uid))
		case st.Mode&0o002 != 0 && st.Mode&unix.S_ISVTX == 0:
			e.control("everybody may write to " + name)
		case st.Mode&0o020 != 0 && !ownGroup(st.Gid) && st.Mode&unix.S_ISVTX == 0:
			e.control(fmt.Sprintf("group %d may write to %s", st.Gid, name))
		case st.Mode&0o022 != 0:
			e.shared = st.Mode&unix.S_ISVTX != 0
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return nil, errnoOf(err), ""
	}
	enter(&st, "/")
	walked, rest, links := "", strings.Split(path, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, errnoOf(err), ""
		}
		here := walked + "/" + name
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return nil, errnoOf(err), ""
		}
		last := len(rest) == 0
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			to, err := readLink(fd)
			unix.Close(fd)
			links++
			switch {
			case last:
				return nil, 0, here + " is a symbolic link, which lb does not follow: write the path that it leads to"
			case err != nil:
				return nil, errnoOf(err), ""
			case links > maxLinks:
				return nil, unix.ELOOP, ""
			}
			if !trusted(st.Uid) {
				e.control(here + " belongs to " + userText(st.Uid))
			}
			e.linked = e.linked || e.controller != ""
			rest = append(strings.Split(to, "/"), rest...)
			if !strings.HasPrefix(to, "/") {
				continue
			}
			if fd, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
				err = unix.Fstat(fd, &st)
			}
			if err != nil {
				return nil, errnoOf(err), ""
			}
			here = ""
		case unix.S_IFDIR:
			if last {
				unix.Close(fd)
				return nil, 0, here + " is a directory and not a socket"
			}
			if st.Dev != device && onProc(fd) {
				unix.Close(fd)
				return nil, 0, here + " is in the proc file system, whose links lead out of it: write the path that they lead to"
			}
		case unix.S_IFSOCK:
			if last {
				e.fd, e.stat, e.mounted = fd, st, isMount(fd)
				return e, 0, ""
			}
			unix.Close(fd)
			return nil, unix.ENOTDIR, ""
		default:
			unix.Close(fd)
			if last {
				return nil, 0, here + " is a file and not a socket"
			}
			return nil, unix.ENOTDIR, ""
		}
		unix.Close(at)
		at, walked = fd, here
		enter(&st, walked+"/")
	}
	return nil, 0, path + " is a directory and not a socket"
}

// control notes another user who decides what the path leads to; the first one is reported.
func (e *entry) control(who string) {
	if e.controller == "" {
		e.controller = who
	}
}

// own reports whether the entry is a socket of lb itself, by whatever name, and says so.
func (e *entry) own(self *[]Address) (string, bool) {
	if self == nil {
		return "", false
	}
	for _, a := range *self {
		var st unix.Stat_t
		if !a.IsUnix() || a.Path[0] == '@' || unix.Lstat(a.Path, &st) != nil {
			continue
		}
		if st.Dev == e.stat.Dev && st.Ino == e.stat.Ino {
			return e.path + " is a socket of lb itself", true
		}
	}
	return "", false
}

// judge returns why lb must not connect to the entry; "" if it may.
//
// Root and lb's own user are trusted as far as no other user decides where the path leads, who could lead
// it to any of their sockets. The owner whom the config names may own the socket wherever it is, and a socket
// that is mounted there must be the owner's.
func (e *entry) judge(owner *Owner) string {
	uid, named := e.stat.Uid, owner.is(e.stat.Uid)
	switch {
	case e.stat.Nlink > 1 && (e.controller != "" || e.shared):
		return e.path + " has a second name (a hard link), and " + e.who() + ": it may be any socket"
	case e.controller == "" && e.mounted && owner != nil && !named:
		return e.path + " is a mount of a socket that belongs to " + userText(uid) + ", who is not its owner: " + writeOwner(uid)
	case e.controller == "" && (trusted(uid) || named):
		return ""
	case trusted(uid) && e.linked:
		return e.path + " leads to a socket of " + userText(uid) + ", but over a symbolic link where " + e.controller
	case named:
		return ""
	case trusted(uid):
		return e.path + " belongs to " + userText(uid) + ", but " + e.controller +
			", and may have it lead anywhere: give the directory to root, or the socket to that user and " + writeOwner(unknownUID)
	}
	return e.path + " belongs to " + userText(uid) + ", who is not its owner: " + writeOwner(uid)
}

func (e *entry) who() string {
	if e.controller != "" {
		return e.controller
	}
	return "everybody may make such names in its directory"
}

// unknownUID is for writeOwner; it is the number that no user has (chown(2)).
const unknownUID = ^uint32(0)

// writeOwner says what to write into the config.
func writeOwner(uid uint32) string {
	name := "NAME"
	if uid != unknownUID {
		name = userName(uid)
	}
	return fmt.Sprintf("write owner = %q for the pool or the backend if that is right", name)
}

// Owner is a user by name or number, who may not exist yet. Nil is no user.
type Owner struct {
	name string

	mu     sync.Mutex
	uid    uint32    // guarded by mu
	known  bool      // guarded by mu
	looked time.Time // guarded by mu: when the name was looked up last
}

// lookEvery is how often a user's name is looked up.
const lookEvery = time.Second

// is reports whether the owner's number is uid. A name is looked up again when it is another, for users that
// are made later.
func (o *Owner) is(uid uint32) bool {
	if o == nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.known && o.uid == uid {
		return true
	}
	if now := time.Now(); now.Sub(o.looked) >= lookEvery {
		o.looked = now
		if n, err := LookupUser(o.name); err == nil {
			o.uid, o.known = n, true
		}
	}
	return o.known && o.uid == uid
}

// LookupUser returns the number of a user who is given by name or number.
func LookupUser(name string) (uid uint32, err error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil && uint32(n) != unknownUID {
		return uint32(n), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("there is no user %q", name)
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err
}

// trusted reports whether a user may do whatever lb may do: root, and lb's own user. In a user namespace that
// does not know the real root (user_namespaces(7)), files of whoever is outside count as root's.
func trusted(uid uint32) bool {
	return uid == 0 || int(uid) == os.Geteuid() || uid == overflowUID && !mapped(overflowUID)
}

// ownGroup reports whether a group is root's, or the one that lb's user has for himself (its number is the
// user's).
func ownGroup(gid uint32) bool {
	return gid == 0 || int(gid) == os.Getegid() && os.Getegid() == os.Geteuid()
}

// overflowUID is what the kernel shows for users that a user namespace does not know
// (/proc/sys/kernel/overflowuid).
const overflowUID = 65534

// mapped reports whether lb's user namespace has the user.
func mapped(uid uint64) bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, n uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &n); err == nil && uid >= inside && uid-inside < n {
			return true
		}
	}
	return false
}

// userText names a user for a message.
func userText(uid uint32) string {
	if name := userName(uid); name != strconv.FormatUint(uint64(uid), 10) {
		return fmt.Sprintf("user %s (%d)", name, uid)
	}
	return fmt.Sprintf("user %d", uid)
}

// userName returns the user's name, or the number as text.
func userName(uid uint32) string {
	number := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(number); err == nil {
		return u.Username
	}
	return number
}

// onProc reports whether fd is of the proc file system.
func onProc(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.PROC_SUPER_MAGIC
}

// isMount reports whether fd is the root of a mount (statx(2)); before Linux 5.8 nothing is.
func isMount(fd int) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// readLink returns what the symbolic link leads to that fd is.
func readLink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// isLocal reports whether an address is one of this host.
func isLocal(ip netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if have, ok := netip.AddrFromSlice(n.IP); ok && have.Unmap() == ip.WithZone("") {
				return true
			}
		}
	}
	return false
}

func errnoOf(err error) unix.Errno {
	if e, ok := err.(unix.Errno); ok {
		return e
	}
	return unix.EIO
}
