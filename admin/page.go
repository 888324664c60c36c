package admin

import (
	"embed"
	"io"
	"net/http"
	"strings"
)

// pageFiles are the page that a browser gets at "/": it is whole in the binary, and asks nobody but lb.
//
//go:embed page/index.html page/page.css page/page.js
var pageFiles embed.FS

// pagePolicy lets the page load its own script and style, and ask lb, and nothing else.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// signpost is what a program, or a person with curl, gets at "/".
const signpost = `This is the control API of lb, a load balancer. A browser sees a page here.

On this host, lb status shows listeners, pools and backends; lb --help lists the other commands.
Here, for programs:

  /healthz          "ok" while lb runs
  /metrics          metrics for Prometheus
  /v1/status        what lb status shows, as JSON
  /v1/events        what changed
  /v1               every path, and who may use it
  /v1/openapi.json  the API as an OpenAPI document
`

// servePage answers a browser with the page, and others with the signpost.
func (s *Server) servePage(w http.ResponseWriter, r *http.Request) {
	if !wantsHTML(r) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		io.WriteString(w, signpost)
		return
	}
	pageFile("index.html", "text/html; charset=utf-8")(w, r)
}

func wantsHTML(r *http.Request) bool { return strings.Contains(r.Header.Get("Accept"), "text/html") }

// pageFile serves one of pageFiles.
func pageFile(name, media string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		text, err := pageFiles.ReadFile("page/" + name)
		if err != nil {
			panic("BUG: admin: the binary lacks " + name)
		}
		h := w.Header()
		h.Set("Content-Type", media)
		h.Set("Content-Security-Policy", pagePolicy)
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		w.Write(text)
	}
}
