package admin

import (
	"net/http"
	"slices"
	"strings"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// findPool finds a pool by name; who asks for one that is not there is told which there are.
func (s *Server) findPool(name string) (*backends.Pool, error) {
	var names []string
	for _, p := range s.src.pools() {
		if p.Name == name {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return nil, unknown("pool", name, names, "")
}

// findBackend finds a backend by its name and its pool's.
func (s *Server) findBackend(pool, name string) (*backends.Backend, error) {
	p, err := s.findPool(pool)
	if err != nil {
		return nil, err
	}
	b := p.Get(name)
	if b == nil { // POOL/SLOT stands for the worker that is there now
		b = p.Get(s.workerBackend(p, name))
	}
	if b != nil {
		return b, nil
	}
	var names []string
	for _, b := range p.Backends() {
		names = append(names, b.Name)
	}
	return nil, unknown("backend", name, names, " in pool "+quote(pool))
}

// findListener finds a listener by name.
func (s *Server) findListener(name string) (api.ListenerStatus, error) {
	var names []string
	for _, l := range s.src.listeners() {
		if l.Name == name {
			return l, nil
		}
		names = append(names, l.Name)
	}
	return api.ListenerStatus{}, unknown("listener", name, names, "")
}

// maxNames is how many names an error lists.
const maxNames = 10

// unknown says that there is none of that name, and which there are, the most similar first.
func unknown(what, name string, names []string, where string) *api.Error {
	if len(names) == 0 {
		return refuse(http.StatusNotFound, "there is no %s %q%s, and no other either", what, name, where)
	}
	slices.SortStableFunc(names, func(a, b string) int { return distance(name, a) - distance(name, b) })
	more := ""
	if len(names) > maxNames {
		names, more = names[:maxNames], ", …"
	}
	for i, n := range names {
		names[i] = quote(n)
	}
	verb := "there is"
	if len(names) > 1 {
		verb = "there are"
	}
	return refuse(http.StatusNotFound, "there is no %s %q%s; %s %s%s", what, name, where, verb, strings.Join(names, ", "), more)
}

func quote(s string) string { return `"` + s + `"` }

// distance is Levenshtein's: how many letters to change, add or take away to get from a to b, in any case.
func distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	a, b = a[:min(len(a), 128)], b[:min(len(b), 128)] // longer than any name; the table is their product
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
