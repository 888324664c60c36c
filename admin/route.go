package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// Access is what a route asks of its caller, and what a caller may do: each class includes those before it. The zero
// value is AccessRead.
type Access uint8

const (
	AccessRead    Access = iota // look: status, metrics
	AccessOperate               // change what runs: weights, states, sessions
	AccessAdmin                 // change what lb is: its config, its binary, its end
)

var accessNames = [...]string{"read", "operate", "admin"}

// String is the class's name in the API.
func (a Access) String() string { return accessNames[a] }

// route is one line of the API.
type route struct {
	method  string
	path    string // as http.ServeMux has it, with {wildcards}
	access  Access
	handler http.HandlerFunc
	doc     string
}

// routes is the whole API. A handler finds its caller with PeerFrom, and its path's wildcards with r.PathValue.
func (s *Server) routes() []route {
	return []route{
		{"GET", "/healthz", AccessRead, s.serveHealthz, `"ok" while lb runs`},
		{"GET", "/metrics", AccessRead, s.serveMetrics, "metrics in the text format of Prometheus"},
		{"GET", "/v1", AccessRead, reply(s.index), "this list"},
		{"GET", "/v1/status", AccessRead, reply(s.status), "listeners, pools and backends"},
	}
}

// Error is a refusal of the API: the HTTP status and, as the JSON field "error", why, in words.
type Error struct {
	Status  int    `json:"-"`
	Message string `json:"error"`
}

func (e *Error) Error() string { return e.Message }

func refuse(status int, format string, args ...any) *Error {
	return &Error{Status: status, Message: fmt.Sprintf(format, args...)}
}

// maxBody is how many bytes the body of a request may have. No request has more to say.
const maxBody = 1 << 20

// mux serves the table. Every request passes through here: the limit of its body, its route, its caller's access.
func (s *Server) mux(routes []route) http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
			if have := PeerFrom(r.Context()).Access(); have < rt.access {
				writeError(w, refuse(http.StatusForbidden, "%s %s needs %q access, and this caller has %q: %s",
					rt.method, rt.path, rt.access, have, whoMay[rt.access]))
				return
			}
			rt.handler(w, r)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { writeError(w, unknownRoute(mux, routes, r)) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})
}

// whoMay tells a caller whose access does not suffice how to come instead.
var whoMay = [...]string{
	AccessRead:    "",
	AccessOperate: "use the control socket",
	AccessAdmin:   "use the control socket as root or as the user that runs lb",
}

// unknownRoute says whether the path or only its method is unknown.
func unknownRoute(mux *http.ServeMux, routes []route, r *http.Request) *Error {
	var methods []string
	for _, rt := range routes {
		probe := &http.Request{Method: rt.method, Host: r.Host, URL: r.URL}
		if _, pattern := mux.Handler(probe); pattern == rt.method+" "+rt.path {
			methods = append(methods, rt.method)
		}
	}
	if methods != nil {
		return refuse(http.StatusMethodNotAllowed, "%s takes %s, not %s", r.URL.Path, strings.Join(methods, ", "), r.Method)
	}
	return refuse(http.StatusNotFound, "there is no path %q; GET /v1 lists them", r.URL.Path)
}

// reply makes a handler of a function that answers with a value to be sent as JSON, or with an error; an *Error says
// its status itself.
func reply(answer func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := answer(r)
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, v)
	}
}

func writeError(w http.ResponseWriter, err error) {
	var refusal *Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &refusal):
	case errors.As(err, &tooLarge):
		refusal = refuse(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", tooLarge.Limit)
	default:
		refusal = refuse(http.StatusInternalServerError, "%v", err)
	}
	writeJSON(w, refusal.Status, refusal)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.Encode(v) // an error is that of a caller who left
}

func (s *Server) serveHealthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write([]byte("ok\n"))
}

func (s *Server) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	s.src.writeMetrics(w)
}

func (s *Server) status(*http.Request) (any, error) { return s.src.Status(), nil }

// index lists the routes.
func (s *Server) index(*http.Request) (any, error) {
	type line struct {
		Method string `json:"method"`
		Path   string `json:"path"`
		Access string `json:"access"`
		Doc    string `json:"doc"`
	}
	var list struct {
		Routes []line `json:"routes"`
	}
	for _, rt := range s.routes() {
		list.Routes = append(list.Routes, line{rt.method, rt.path, rt.access.String(), rt.doc})
	}
	return list, nil
}
