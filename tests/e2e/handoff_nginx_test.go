//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// nginx leaves an inherited listening socket as it is: its channel blocks. A probe, which nginx never sees,
// must not have it wait there for the next connection while its clients wait for it.
func TestHandOff_ProbesDoNotStopNginx(t *testing.T) {
	home := tempDir(t)
	port := freePort(t, "127.0.0.1")
	conf := writeFile(t, home, "nginx.conf", fmt.Sprintf(`
user root;
daemon off;
pid %[1]s/nginx.pid;
error_log %[1]s/error.log warn;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	server { listen %[2]s; location / { return 200 "ok"; } }
}
`, home, port), 0o644)
	config := handoffPool(t, "lb", "", fmt.Sprintf("command = [%q, \"-c\", %q, \"-e\", %q]\ncount = 1\nenv = { NGINX = \"3;\", LD_PRELOAD = %q }\n",
		program(t, "nginx"), conf, filepath.Join(home, "error.log"), preloadLibrary(t)))
	config.Listeners[0].Bind = []string{port}
	config.Pools[0].Health = "interval = \"100ms\"\n"
	l := startLB(t, config)
	l.waitUp(t, 1)
	client := http.Client{Timeout: patience}
	defer client.CloseIdleConnections()
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		resp, err := client.Get("http://" + port + "/")
		if err != nil {
			t.Fatalf("a kept connection: %v", err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}
