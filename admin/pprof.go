package admin

import (
	"net/http"
	"net/http/pprof"
	rpprof "runtime/pprof"
	"time"
)

// longestProfile is how long a profile of some time may be.
const longestProfile = 5 * time.Minute

// serveProfile answers with a profile of this process, as go tool pprof reads it. It is served over the
// control socket alone: the memory of lb holds what its clients send.
func (s *Server) serveProfile(w http.ResponseWriter, r *http.Request) {
	if !CallerFrom(r.Context()).Local {
		s.refused.count(refusedAccess)
		s.fail(w, refuse(http.StatusForbidden, "profiles are served over the control socket alone: curl --unix-socket SOCKET http://lb%s", r.URL.Path))
		return
	}
	rc := http.NewResponseController(w)
	unhurried(rc, longestProfile)
	switch name := r.PathValue("profile"); {
	case name == "profile":
		pprof.Profile(w, r)
	case name == "trace":
		pprof.Trace(w, r)
	case rpprof.Lookup(name) != nil:
		pprof.Handler(name).ServeHTTP(w, r)
	default:
		s.fail(w, refuse(http.StatusNotFound, "there is no profile %q; there are profile, trace, heap, allocs, goroutine, block, mutex and threadcreate", name))
	}
}
