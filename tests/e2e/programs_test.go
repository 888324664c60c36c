//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// waitAccepts waits until a program that has just been started listens on address.
func waitAccepts(t testing.TB, p *process, address string) {
	t.Helper()
	eventually(t, 2*patience, func() error {
		if !p.running() {
			t.Fatalf("%s: got %v at its start; want it to run", p.name, p.cmd.ProcessState)
		}
		return accepts(address)
	})
}

// nginx is a web server with one process, which serves the files of root, takes uploads below /upload/, and
// answers with its name at /name.
type nginx struct {
	*process
	unix, tcp, tls string // its addresses; tls only with a certificate
	root           string
}

// startNginx starts nginx; cert may be nil.
func startNginx(t testing.TB, name string, cert *certificate) *nginx {
	t.Helper()
	dir := tempDir(t)
	n := &nginx{unix: socketPath(dir, "nginx.sock"), tcp: freePort(t, "127.0.0.1"), root: filepath.Join(dir, "root")}
	listen := fmt.Sprintf("listen %s backlog=4096; listen %s;", n.unix, n.tcp)
	if cert != nil {
		n.tls = freePort(t, "127.0.0.1")
		listen += fmt.Sprintf("listen %s ssl; ssl_certificate %s; ssl_certificate_key %s;", n.tls, cert.cert, cert.key)
	}
	for _, sub := range []string{"root/upload", "body", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatalf("cannot make the folders of nginx: %v", err)
		}
	}
	userLine := ""
	if os.Geteuid() == 0 {
		userLine = "user root;"
	}
	config := writeFile(t, dir, "nginx.conf", fmt.Sprintf(`
daemon off; master_process off; %s
pid %[2]s/nginx.pid; error_log stderr warn;
events { worker_connections 4096; }
http {
	access_log off; sendfile on; tcp_nopush on;
	client_body_temp_path %[2]s/body; proxy_temp_path %[2]s/tmp; fastcgi_temp_path %[2]s/tmp;
	uwsgi_temp_path %[2]s/tmp; scgi_temp_path %[2]s/tmp;
	server {
		%[3]s
		root %[4]s;
		location = /name { return 200 %[5]s; }
		location /upload/ { dav_methods PUT; client_max_body_size 0; }
	}
}
`, userLine, dir, listen, n.root, name), 0o644)
	cmd := exec.Command(program(t, "nginx"), "-e", "stderr", "-p", dir, "-c", config)
	n.process = startProcess(t, "nginx "+name, cmd)
	waitAccepts(t, n.process, n.unix)
	return n
}

// redis is a redis-server that stores nothing.
type redis struct {
	*process
	unix, tcp string
}

func startRedis(t testing.TB) *redis {
	t.Helper()
	dir := tempDir(t)
	r := &redis{unix: socketPath(dir, "redis.sock"), tcp: freePort(t, "127.0.0.1")}
	_, socket := splitAddress(r.unix)
	_, port, _ := strings.Cut(r.tcp, ":")
	cmd := exec.Command(program(t, "redis-server"), "--dir", dir, "--unixsocket", socket, "--bind", "127.0.0.1",
		"--port", port, "--save", "", "--appendonly", "no")
	r.process = startProcess(t, "redis", cmd)
	waitAccepts(t, r.process, r.unix)
	return r
}

// postgres is a PostgreSQL server with the superuser "postgres", who needs no password.
type postgres struct {
	*process
	unix, tcp string
	dir       string // of its socket, as its clients name it
}

// owner returns the line of a backend or pool that names the user whose socket it is.
func (p *postgres) owner(t testing.TB) string {
	t.Helper()
	info, err := os.Stat(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("owner = \"%d\"\n", info.Sys().(*syscall.Stat_t).Uid)
}

func startPostgres(t testing.TB) *postgres {
	t.Helper()
	dir := tempDir(t)
	p := &postgres{unix: socketPath(dir, ".s.PGSQL.5432"), tcp: freePort(t, "127.0.0.1"), dir: dir}
	data := filepath.Join(dir, "data")
	attributes := func() *syscall.SysProcAttr { return &syscall.SysProcAttr{Credential: unprivileged(t, dir)} }
	initdb := exec.Command(program(t, "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--locale=C",
		"--encoding=UTF8", "--no-sync", "--no-instructions")
	initdb.Dir, initdb.SysProcAttr = dir, attributes()
	dieWithParent(initdb)
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("cannot make a PostgreSQL cluster: %v\n%s", err, out)
	}
	_, port, _ := strings.Cut(p.tcp, ":")
	// Its TCP port is as free as any; its socket has PostgreSQL's usual name, for -p sets both.
	cmd := exec.Command(program(t, "postgres"), "-D", data, "-k", dir, "-h", "127.0.0.1", "-p", port, "-F",
		"-c", "max_connections=100")
	p.unix = socketPath(dir, ".s.PGSQL."+port)
	cmd.Dir, cmd.SysProcAttr = dir, attributes()
	// The server's children would outlive it: SIGQUIT makes it end them, and itself at once.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	p.process = startProcess(t, "postgres", cmd)
	p.stop = syscall.SIGINT // fast: it does not wait for its clients
	eventually(t, 2*patience, func() error {
		if !p.running() {
			t.Fatalf("postgres: got %v at its start; want it to run", p.cmd.ProcessState)
		}
		if r := run(t, patience, nil, program(t, "psql"), "-h", "127.0.0.1", "-p", port, "-U", "postgres", "-c", "select 1"); r.code != 0 {
			return fmt.Errorf("exit code of psql: got %d; want 0: %s", r.code, r.stderr)
		}
		return nil
	})
	return p
}

// unprivileged returns the user "postgres", or else "nobody", and gives them dir; nil if this process is not
// root.
func unprivileged(t testing.TB, dir string) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		t.Fatalf("cannot find a user for PostgreSQL, which does not run as root: %v", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatalf("cannot give %q to %s: %v", dir, u.Username, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// sshd is an SSH server with a host key of its own, which lets the current user in with one key.
type sshd struct {
	*process
	tcp      string
	dir      string
	hostKey  string // the public key
	identity string // file with the client's private key
	user     string
}

func startSSHD(t testing.TB) *sshd {
	t.Helper()
	dir := tempDir(t)
	who, err := user.Current()
	if err != nil {
		t.Fatalf("cannot find the current user: %v", err)
	}
	s := &sshd{tcp: freePort(t, "127.0.0.1"), dir: dir, identity: filepath.Join(dir, "id"), user: who.Username}
	host := filepath.Join(dir, "host")
	for _, key := range []string{host, s.identity} {
		mustRun(t, patience, program(t, "ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", key)
	}
	s.hostKey = strings.TrimSpace(readFile(t, host+".pub"))
	usePAM := "no"
	if os.Geteuid() == 0 {
		// sshd's folder without rights, which a system makes at boot when it starts its own.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatalf("cannot make the folder of sshd: %v", err)
		}
		if passwordLocked(t, s.user) {
			usePAM = "yes" // without PAM, sshd lets nobody in whose password is locked, with whatever key
		}
	}
	config := writeFile(t, dir, "sshd_config", fmt.Sprintf(`
ListenAddress %s
HostKey %s
AuthorizedKeysFile %s.pub
PidFile %s/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM %s
UseDNS no
Subsystem sftp internal-sftp
`, s.tcp, host, s.identity, dir, usePAM), 0o600)
	s.process = startProcess(t, "sshd", exec.Command(program(t, "sshd"), "-D", "-e", "-f", config))
	waitAccepts(t, s.process, s.tcp)
	return s
}

// passwordLocked says whether the password of a user is locked, shadow(5).
func passwordLocked(t testing.TB, name string) bool {
	t.Helper()
	for line := range strings.Lines(readFile(t, "/etc/shadow")) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.HasPrefix(rest, "!")
		}
	}
	return false
}

// client returns an ssh command line, without the host, to reach s through front; it accepts only the host
// key of s.
func (s *sshd) client(t testing.TB, front string) []string {
	t.Helper()
	host, port, _ := strings.Cut(front, ":")
	known := writeFile(t, s.dir, "known_hosts", fmt.Sprintf("[%s]:%s %s\n", host, port, s.hostKey), 0o600)
	return []string{program(t, "ssh"), "-F", "none", "-p", port, "-i", s.identity, "-l", s.user,
		"-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes",
		"-o", "UserKnownHostsFile=" + known, "-o", "GlobalKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"}
}

// nodeServer is an HTTP server on Node: /name answers with its name, POST /sum with the SHA-256 of the body,
// /count?n=N with N numbered lines in as many chunks, and an upgrade makes the connection an echo.
const nodeServer = `
const http = require('http'), crypto = require('crypto');
const [name, socket] = process.argv.slice(2);
const server = http.createServer((req, res) => {
	const url = new URL(req.url, 'http://lb');
	if (url.pathname === '/name') return res.end(name);
	if (url.pathname === '/sum') {
		const sum = crypto.createHash('sha256');
		req.on('data', (d) => sum.update(d));
		return req.on('end', () => res.end(sum.digest('hex')));
	}
	if (url.pathname === '/count') {
		const n = Number(url.searchParams.get('n'));
		let i = 0;
		const more = () => {
			while (i < n) if (!res.write((i++) + '\n')) return res.once('drain', more);
			res.end();
		};
		return more();
	}
	res.statusCode = 404;
	res.end();
});
server.on('upgrade', (req, socket, head) => {
	socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n');
	socket.write(head);
	socket.pipe(socket);
});
server.listen(socket);
`

// startNode starts an HTTP server on Node on a Unix socket, and returns its address.
func startNode(t testing.TB, name string) (address string) {
	t.Helper()
	dir := tempDir(t)
	address = socketPath(dir, "node.sock")
	_, socket := splitAddress(address)
	script := writeFile(t, dir, "server.js", nodeServer, 0o644)
	p := startProcess(t, "node "+name, exec.Command(program(t, "node"), script, name, socket))
	waitAccepts(t, p, address)
	return address
}

// certificate is a self-signed one for "lb.test".
type certificate struct{ cert, key string }

func newCertificate(t testing.TB) *certificate {
	t.Helper()
	dir := tempDir(t)
	c := &certificate{cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	mustRun(t, patience, program(t, "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
		"-nodes", "-days", "2", "-subj", "/CN=lb.test", "-addext", "subjectAltName=DNS:lb.test", "-keyout", c.key, "-out", c.cert)
	return c
}

// startTLSReverser starts an openssl s_server that answers each line with the line reversed.
func startTLSReverser(t testing.TB, cert *certificate) (address string) {
	t.Helper()
	address = freePort(t, "127.0.0.1")
	p := startProcess(t, "openssl s_server", exec.Command(program(t, "openssl"), "s_server", "-accept", address,
		"-cert", cert.cert, "-key", cert.key, "-rev", "-quiet"))
	waitAccepts(t, p, address)
	return address
}
