package supervisor

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Listening is a socket that a process listens on.
type Listening struct {
	PID int
	// Address is "*:3000", "127.0.0.1:3000", "[::1]:3000" or "unix:/path".
	Address string
}

// Listens returns the sockets that a worker, whose pid is given, and what it has started listen on. looked is
// false where lb may not look.
func Listens(pid int) (all []Listening, looked bool) {
	sockets, err := listeningSockets(pid)
	if err != nil {
		return nil, false
	}
	everyone, _ := everybody()
	worker := map[int]bool{pid: true}
	seen := map[string]bool{}
	for _, r := range everyone {
		if r.worker(worker, everyone) == 0 {
			continue
		}
		dir := "/proc/" + strconv.Itoa(r.pid) + "/fd"
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrPermission) {
			return nil, false
		}
		for _, e := range entries {
			target, _ := os.Readlink(dir + "/" + e.Name())
			inode := strings.TrimSuffix(strings.TrimPrefix(target, "socket:["), "]")
			if address := sockets[inode]; address != "" && !seen[address] {
				seen[address] = true
				all = append(all, Listening{r.pid, address})
			}
		}
	}
	return all, true
}

// listeningSockets returns the addresses of the sockets that listen in the network namespace of a process, by
// their inodes.
func listeningSockets(pid int) (map[string]string, error) {
	all := map[string]string{}
	dir := fmt.Sprintf("/proc/%d/net/", pid)
	for _, name := range []string{"tcp", "tcp6"} {
		err := eachListeningTCP(dir+name, func(fields []string) {
			if address, ok := procAddress(fields[1]); ok {
				all[fields[9]] = address
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return all, addListeningUnix(dir+"unix", all)
}

// addListeningUnix adds the sockets that listen of a table such as /proc/net/unix. One that is not there is
// an empty one.
func addListeningUnix(path string, all map[string]string) error {
	table, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	lines.Scan() // the heading
	for lines.Scan() {
		// Num RefCount Protocol Flags Type St Inode Path; __SO_ACCEPTCON is 1<<16.
		if fields := strings.Fields(lines.Text()); len(fields) == 8 && fields[3] == "00010000" {
			all[fields[6]] = "unix:" + fields[7]
		}
	}
	return lines.Err()
}

// procAddress reads an address as /proc/net/tcp has it: 32-bit words in the machine's byte order, and a port.
func procAddress(text string) (string, bool) {
	host, number, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	port, failed := strconv.ParseUint(number, 16, 16)
	if err != nil || failed != nil || len(raw)%4 != 0 {
		return "", false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	ip, ok := netip.AddrFromSlice(raw)
	if !ok {
		return "", false
	}
	if ip.IsUnspecified() {
		return "*:" + strconv.FormatUint(port, 10), true
	}
	return net.JoinHostPort(ip.Unmap().String(), strconv.FormatUint(port, 10)), true
}

// elsewhere says where a worker listens that is not ready at its own address; empty where that explains
// nothing.
func (w *worker) elsewhere() string {
	if w.end == nil || w.end.fd >= 0 || w.end.handoff != "" || w.process == nil {
		return ""
	}
	place, address := "{port}", w.end.address()
	if w.end.path != "" {
		place = "{socket}"
	}
	all, _ := Listens(w.pid())
	for _, l := range all {
		_, port, _ := net.SplitHostPort(l.Address)
		if l.Address == address || w.end.path == "" && port == strconv.Itoa(w.end.port) {
			return ""
		}
	}
	if len(all) == 0 {
		return ""
	}
	return fmt.Sprintf("pid %d listens on %s, not on %s (%s)", all[0].PID, all[0].Address, place, address)
}
