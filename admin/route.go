package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

// Access is what a route asks of its caller, and what a caller may do: each class includes those before it.
// The zero value is AccessRead.
type Access int8

const (
	accessNone    Access = iota - 1 // not even that
	AccessRead                      // look: status, events, metrics
	AccessOperate                   // change what runs: weights, states, limits; see and close sessions
	AccessAdmin                     // change what lb is: where it connects to, its config, its end
)

var accessNames = [...]string{"read", "operate", "admin"}

// String is the class's name in the API.
func (a Access) String() string {
	if a < AccessRead {
		return "no"
	}
	return accessNames[a]
}

// route is one line of the API.
type route struct {
	method  string
	path    string // as http.ServeMux has it, with {wildcards}
	access  Access
	handler http.HandlerFunc
	doc     string

	// What the OpenAPI document says besides.
	query  []param // what may stand behind "?"
	body   any     // a value of the type of the JSON body; nil is none
	answer any     // a value of the type of the JSON answer
	media  string  // of the answer; "" is application/json
}

// param is a query parameter.
type param struct {
	name, typ, doc string // typ is one of JSON Schema's
}

// routes is the whole API. A handler finds its caller with CallerFrom, and its path's wildcards with
// r.PathValue.
func (s *Server) routes() []route {
	const (
		pool     = "/v1/pools/{pool}"
		backend  = pool + "/backends/{backend}"
		listener = "/v1/listeners/{listener}"
		text     = "text/plain; charset=utf-8"
	)
	return []route{
		{method: "GET", path: "/{$}", handler: s.servePage, doc: "a page for browsers; for others, a list of paths", answer: "", media: "text/html; charset=utf-8"},
		{method: "GET", path: "/page.js", handler: pageFile("page.js", "text/javascript; charset=utf-8"), doc: "the script of the page", answer: "", media: "text/javascript"},
		{method: "GET", path: "/page.css", handler: pageFile("page.css", "text/css; charset=utf-8"), doc: "the style of the page", answer: "", media: "text/css"},
		{method: "GET", path: "/healthz", handler: s.serveHealthz, doc: `"ok" while lb accepts connections; 503 and the names of the listeners that it cannot serve otherwise`, answer: "", media: text},
		{method: "GET", path: "/metrics", handler: s.serveMetrics, doc: "metrics in the text format of Prometheus", answer: "", media: metricsMedia},
		{method: "GET", path: "/v1", handler: s.reply(s.index), doc: "this list", answer: routeList{}},
		{method: "GET", path: "/v1/openapi.json", handler: s.reply(s.openAPI), doc: "the API as an OpenAPI document", answer: map[string]any{}},
		{method: "GET", path: "/v1/status", handler: s.reply(s.status), doc: "listeners, pools and backends", answer: api.Status{}},
		{method: "GET", path: listener, handler: s.reply(s.getListener), doc: "one listener", answer: api.ListenerStatus{}},
		{method: "GET", path: pool, handler: s.reply(s.getPool), doc: "one pool with its backends", answer: api.PoolStatus{}},
		{method: "GET", path: backend, handler: s.reply(s.getBackend), doc: "one backend", answer: api.BackendStatus{}},
		{method: "GET", path: pool + "/why", handler: s.explain(s.whyPool), doc: "what is wrong with a pool and its backends, and what to do", answer: api.PoolDiagnosis{}},
		{method: "GET", path: backend + "/why", handler: s.explain(s.whyBackend), doc: "what is wrong with a backend or a slot, and what to do", answer: api.Diagnosis{}},
		{method: "GET", path: pool + "/workers", handler: s.reply(s.getWorkers), doc: "the workers that lb runs for a pool", answer: api.WorkersStatus{}},
		{method: "GET", path: "/v1/history", handler: s.reply(s.getHistory), doc: "what backends did in the last ten minutes, by intervals of ten seconds",
			query: []param{{"pool", "string", "only backends of this pool"}}, answer: api.History{}},
		{method: "GET", path: "/v1/events", handler: s.serveEvents, doc: "what changed, the oldest first, one JSON value a line",
			query: []param{
				{"after", "integer", "only events with a greater ID"},
				{"last", "integer", "only so many of the last ones"},
				{"follow", "boolean", "go on with those to come"},
			}, answer: api.Event{}, media: ndjson},

		{method: "PUT", path: backend + "/weight", access: AccessOperate, handler: s.reply(s.setWeight),
			doc: "change the weight of a backend", body: api.WeightChange{}, answer: api.BackendStatus{}},
		{method: "PUT", path: backend + "/admin", access: AccessOperate, handler: s.reply(s.setAdmin),
			doc: "change the admin state of a backend", body: api.AdminChange{}, answer: api.BackendStatus{}},
		{method: "PUT", path: backend + "/max_conns", access: AccessOperate, handler: s.reply(s.setMaxConns),
			doc: "change the limit of a backend", body: api.MaxConnsChange{}, answer: api.BackendStatus{}},
		{method: "PUT", path: listener + "/split", access: AccessOperate, handler: s.reply(s.setSplit),
			doc: "change the weights of a listener's split", body: api.SplitChange{}, answer: api.SplitResult{}},
		{method: "PUT", path: listener + "/max_conns", access: AccessOperate, handler: s.reply(s.setListenerMaxConns),
			doc: "change the limit of a listener", body: api.MaxConnsChange{}, answer: api.MaxConnsResult{}},
		{method: "GET", path: "/v1/sessions", access: AccessOperate, handler: s.reply(s.listSessions), doc: "running sessions, the oldest first",
			query: []param{
				{"id", "string", "only the one with this ID"},
				{"pool", "string", "only those of this pool"},
				{"backend", "string", "only those of this backend of the pool"},
				{"older", "string", `only those that have run for at least this long, such as "10m"`},
				{"limit", "integer", "at most so many; 1000 when absent"},
			}, answer: api.SessionList{}},
		{method: "GET", path: "/v1/clients", access: AccessOperate, handler: s.reply(s.listClients),
			doc: "addresses of clients with running sessions, those with the most first",
			query: []param{
				{"pool", "string", "only sessions of this pool"},
				{"backend", "string", "only those of this backend of the pool"},
				{"limit", "integer", "at most so many; 20 when absent"},
			}, answer: api.ClientList{}},
		{method: "POST", path: "/v1/sessions/kill", access: AccessOperate, handler: s.killSessions,
			doc: "close sessions, and answer when they are closed", body: api.KillRequest{}, answer: api.KillResult{}},
		{method: "GET", path: pool + "/logs", access: AccessOperate, handler: s.serveLogs,
			doc: "what the workers of a pool wrote, the oldest first, one JSON value a line",
			query: []param{
				{"slot", "integer", "only what the workers of this slot wrote"},
				{"last", "integer", "only so many of the last lines"},
				{"follow", "boolean", "go on with those to come"},
			}, answer: api.WorkerLine{}, media: ndjson},
		{method: "POST", path: pool + "/restart", access: AccessOperate, handler: s.restart,
			doc:  "replace workers by new ones, the first as a canary, and answer with each step, one JSON value a line",
			body: api.RestartRequest{}, answer: api.RestartStep{}, media: ndjson},
		{method: "POST", path: pool + "/rollback", access: AccessOperate, handler: s.rollback,
			doc:  "replace workers by ones of the command, environment and directory that worked before",
			body: api.RestartRequest{}, answer: api.RestartStep{}, media: ndjson},
		{method: "POST", path: pool + "/scale", access: AccessOperate, handler: s.slow(s.scale),
			doc: "change how many workers there are, and answer when new ones are ready", body: api.ScaleRequest{}, answer: api.WorkersStatus{}},
		{method: "POST", path: pool + "/workers/{slot}/stop", access: AccessOperate, handler: s.slow(s.stopWorker),
			doc: "end the worker of a slot, and start none there", answer: api.WorkersStatus{}},
		{method: "POST", path: pool + "/workers/{slot}/start", access: AccessOperate, handler: s.slow(s.startWorker),
			doc: "start the worker of a slot, and answer when it is ready", answer: api.WorkersStatus{}},
		{method: "PUT", path: "/v1/log-level", access: AccessOperate, handler: s.reply(s.setLogLevel),
			doc: "change the least level of the event log", body: api.LogLevelChange{}, answer: api.LogLevelChange{}},

		{method: "POST", path: pool + "/backends", access: AccessAdmin, handler: s.reply(s.addBackend),
			doc: "add a backend to a pool", body: api.NewBackend{}, answer: api.BackendStatus{}},
		{method: "DELETE", path: backend, access: AccessAdmin, handler: s.reply(s.removeBackend),
			doc: "take a backend out of its pool, and answer with the pool; its sessions go on", answer: api.PoolStatus{}},
		{method: "POST", path: "/v1/reload", access: AccessAdmin, handler: s.slow(s.reload),
			doc: "read the config anew and apply the differences, or with dry_run tell them", body: api.ReloadRequest{}, answer: api.ReloadResult{}},
		{method: "POST", path: "/v1/upgrade", access: AccessAdmin, handler: s.upgrade,
			doc:  "go on as a new program, with all sessions, and answer when it has taken over; or with dry_run only ask it",
			body: api.UpgradeRequest{}, answer: api.UpgradeResult{}},
		{method: "POST", path: "/v1/stop", access: AccessAdmin, handler: s.reply(s.stop),
			doc: "begin to stop; sessions may finish within proxy.stop_timeout", body: api.StopRequest{}, answer: api.StopResult{}},
		{method: "GET", path: "/debug/pprof/{profile}", access: AccessAdmin, handler: s.serveProfile,
			doc: "a profile of lb, for go tool pprof; over the control socket alone",
			query: []param{
				{"seconds", "integer", "how long to look, for profile and trace"},
				{"debug", "integer", "as text, where it is not 0"},
			}, answer: "", media: "application/octet-stream"},
	}
}

// maxBody is how many bytes the body of a request may have. No request has more to say.
const maxBody = 64 << 10

// mux serves the table. Every request passes through here: the limit of its body, its route, its caller's
// access.
func (s *Server) mux(routes []route) http.Handler {
	mux := http.NewServeMux()
	for _, rt := range routes {
		mux.HandleFunc(rt.method+" "+rt.path, func(w http.ResponseWriter, r *http.Request) {
			if refusal := s.mayNot(&rt, CallerFrom(r.Context())); refusal != nil {
				if refusal.Status == http.StatusUnauthorized {
					w.Header().Set("WWW-Authenticate", `Bearer realm="lb"`)
				}
				writeError(w, refusal)
				return
			}
			if s.Control == nil && rt.method != http.MethodGet {
				writeError(w, errUnable)
				return
			}
			rt.handler(w, r)
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { s.serveUnknown(w, r, mux, routes) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		mux.ServeHTTP(w, r)
	})
}

// mayNot refuses a caller whose access does not suffice, and tells him how to come instead.
func (s *Server) mayNot(rt *route, p Caller) *api.Error {
	have := p.Access()
	if have >= rt.access {
		return nil
	}
	if p.Self {
		s.refused.count(refusedSelf)
		s.report(slog.LevelWarn, "admin self", "lb relays a session to its own control API, or probes it: refused; "+
			"no backend may lead to admin.socket or admin.http", "asked", rt.method+" "+rt.path)
		return refuse(http.StatusForbidden, "lb does not serve itself: a backend or a probe of this lb leads to its own control API; remove it")
	}
	if !p.Local {
		s.refused.count(refusedNoToken)
		if s.token != nil {
			return refuse(http.StatusUnauthorized, "%s %s needs the token of admin.token_file, as Authorization: Bearer TOKEN, or the control socket", rt.method, rt.path)
		}
		return refuse(http.StatusForbidden, "%s %s needs %q access: use the control socket, or set admin.token_file and send the token", rt.method, rt.path, rt.access)
	}
	s.refused.count(refusedAccess)
	return refuse(http.StatusForbidden, "%s %s needs %q access, and this caller has %q: use the control socket as root or as the user that runs lb",
		rt.method, rt.path, rt.access, have)
}

// serveUnknown answers for a path or a method that there is not. Who asks with a browser gets text.
func (s *Server) serveUnknown(w http.ResponseWriter, r *http.Request, mux *http.ServeMux, routes []route) {
	refusal := unknownRoute(mux, routes, r)
	if r.Method != http.MethodGet || !wantsHTML(r) {
		writeError(w, refusal)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(refusal.Status)
	io.WriteString(w, signpost)
}

// unknownRoute says whether the path or only its method is unknown.
func unknownRoute(mux *http.ServeMux, routes []route, r *http.Request) *api.Error {
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

// reply makes a handler of a function that answers with a value to be sent as JSON, or with an error; an
// *Error says its status itself.
func (s *Server) reply(answer func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := answer(r)
		if err != nil {
			s.fail(w, err)
			return
		}
		if CallerFrom(r.Context()).Access() < AccessOperate {
			v = forReader(v)
		}
		writeJSON(w, http.StatusOK, v)
	}
}

// slowest is how long the outcome of a change may take.
const slowest = time.Hour

// slow is reply for a function that may take up to slowest.
func (s *Server) slow(answer func(*http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.reply(func(r *http.Request) (any, error) {
			// The body is read within the limits of every other.
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			r.Body = io.NopCloser(strings.NewReader(string(body)))
			unhurried(http.NewResponseController(w), slowest)
			return answer(r)
		})(w, r)
	}
}

// unhurried gives the answer of a request, whose body has been read, d more. The limit of reading goes too:
// its passing would look as if the caller had left.
func unhurried(rc *http.ResponseController, d time.Duration) {
	rc.SetReadDeadline(time.Time{})
	rc.SetWriteDeadline(time.Now().Add(d + writeTimeout))
}

// readBody reads the JSON value that the body is. A field that is not one of v's is an error.
func readBody(r *http.Request, v any) error {
	found, err := readJSON(r, v)
	if err == nil && !found {
		return refuse(http.StatusBadRequest, "the body is empty; write a JSON object")
	}
	return err
}

// readBodyIfAny is readBody, but an empty body leaves v as it is.
func readBodyIfAny(r *http.Request, v any) error {
	_, err := readJSON(r, v)
	return err
}

func readJSON(r *http.Request, v any) (found bool, err error) {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); errors.Is(err, io.EOF) {
		return false, nil
	} else if err != nil {
		return false, bodyError(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errors.New("there is something behind the object")
		}
		return false, bodyError(err)
	}
	return true, nil
}

// bodyError is a 400 unless the body did not come as it should.
func bodyError(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return refuse(http.StatusBadRequest, "the body is not what it should be: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// fail answers with an error, and counts those that a stranger may be behind.
func (s *Server) fail(w http.ResponseWriter, err error) {
	refusal := asRefusal(err)
	switch refusal.Status {
	case http.StatusRequestEntityTooLarge:
		s.refused.count(refusedBodySize)
		w.Header().Set("Connection", "close")
	case http.StatusRequestTimeout:
		s.refused.count(refusedSlowBody)
		w.Header().Set("Connection", "close")
	}
	writeError(w, refusal)
}

func writeError(w http.ResponseWriter, refusal *api.Error) { writeJSON(w, refusal.Status, refusal) }

// newEncoder returns an encoder of JSON that no terminal obeys, for who asks with curl.
func newEncoder(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(printable.JSONWriter(w))
	enc.SetEscapeHTML(false)
	return enc
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := newEncoder(w)
	enc.Encode(v) // an error is that of a caller who left
}

func (s *Server) serveHealthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if s.src.NotAccepting != nil {
		if names := s.src.NotAccepting(); len(names) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintf(w, "lb cannot accept connections on: %s; the log says why\n", strings.Join(names, ", "))
			return
		}
	}
	w.Write([]byte("ok\n"))
}

// metricsMedia is the media type of the text format of Prometheus.
const metricsMedia = "text/plain; version=0.0.4; charset=utf-8"

func (s *Server) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", metricsMedia)
	s.src.writeMetrics(w, &s.refused, &s.failures)
}

func (s *Server) status(*http.Request) (any, error) {
	st := s.src.Status()
	s.rates.ofAll(&s.src, st)
	for i, p := range s.src.pools() {
		if i < len(st.Pools) && st.Pools[i].Name == p.Name {
			s.history.fill(p, &st.Pools[i])
		}
	}
	return st, nil
}

// routeList is the answer of GET /v1.
type routeList struct {
	Routes []routeLine `json:"routes"`
}

type routeLine struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Access string `json:"access"`
	Doc    string `json:"doc"`
}

// index lists the routes.
func (s *Server) index(*http.Request) (any, error) {
	var list routeList
	for _, rt := range s.routes() {
		list.Routes = append(list.Routes, routeLine{rt.method, rt.path, rt.access.String(), rt.doc})
	}
	return list, nil
}

// openAPI is the document of this table, made again for the few who ask.
func (s *Server) openAPI(*http.Request) (any, error) {
	return describe(s.routes(), s.src.process().Version), nil
}
