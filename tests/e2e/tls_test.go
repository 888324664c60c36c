//go:build e2e

package e2e

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// sClient returns the arguments of an openssl s_client that connects to address and accepts only cert: so the
// handshake is with the backend itself, and lb is not in the middle.
func sClient(address string, cert *certificate, args ...string) []string {
	return append([]string{"s_client", "-connect", address, "-servername", "lb.test", "-CAfile", cert.cert,
		"-verify_hostname", "lb.test", "-verify_return_error"}, args...)
}

func TestTLS_PassesThroughToServer(t *testing.T) {
	cert := newCertificate(t)
	l := startLB(t, onePool(t, startTLSReverser(t, cert)))
	cmd := exec.Command(program(t, "openssl"), sClient(l.addr(), cert, "-quiet", "-no_ign_eof")...)
	dieWithParent(cmd)
	var messages strings.Builder
	cmd.Stderr = &messages
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatalf("cannot make a pipe: %v", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("cannot make a pipe: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("cannot start openssl: %v", err)
	}
	answers := bufio.NewReader(out)
	for _, word := range []struct{ said, want string }{{"hello\n", "olleh\n"}, {"balancer\n", "recnalab\n"}} {
		io.WriteString(in, word.said)
		if got, err := answers.ReadString('\n'); got != word.want {
			t.Errorf("answer over TLS: got %q, %v; want %q", got, err, word.want)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("openssl s_client: got %v; want no error\n%s", err, &messages)
	}
}

func TestTLS_VerifiesTheBackend(t *testing.T) {
	cert := newCertificate(t)
	l := startLB(t, onePool(t, startNginx(t, "w1", cert).tls))
	r := run(t, patience, strings.NewReader("Q\n"), program(t, "openssl"), sClient(l.addr(), cert)...)
	if want := "Verify return code: 0 (ok)"; r.code != 0 || !strings.Contains(r.stdout, want) {
		t.Errorf("openssl s_client: got exit code %d; want 0 and %q\n%s%s", r.code, want, r.stdout, r.stderr)
	}
	// The same with another's certificate must fail: the test can tell.
	if r := run(t, patience, strings.NewReader("Q\n"), program(t, "openssl"), sClient(l.addr(), newCertificate(t))...); r.code == 0 {
		t.Error("openssl s_client with a certificate that is not the server's: got exit code 0; want another")
	}
}

func TestTLS_LargeAnswer(t *testing.T) {
	const size = 64 << 20
	cert := newCertificate(t)
	server := startNginx(t, "w1", cert)
	content, _ := io.ReadAll(noise(size, 6))
	writeFile(t, server.root, "large", string(content), 0o644)
	l := startLB(t, onePool(t, server.tls))
	request := strings.NewReader("GET /large HTTP/1.0\r\n\r\n")
	r := run(t, 3*patience, request, program(t, "openssl"), sClient(l.addr(), cert, "-quiet")...)
	head, got, _ := strings.Cut(r.stdout, "\r\n\r\n")
	if r.code != 0 || !strings.HasPrefix(head, "HTTP/1.1 200") {
		t.Fatalf("openssl s_client: got exit code %d and %q; want 0 and status 200\n%s", r.code, head, r.stderr)
	}
	if got != string(content) {
		t.Errorf("answer over TLS: got %d bytes unlike the %d wanted", len(got), size)
	}
}
