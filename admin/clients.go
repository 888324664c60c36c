package admin

import (
	"cmp"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

const (
	defaultClients = 20
	// clientRateAge is how old the numbers may be that a client's rate is taken against.
	clientRateAge = time.Minute
)

// clients knows what each session had carried when somebody asked last, for the rates. It knows nothing until
// somebody asks, and forgets at each question the sessions that have ended. Safe for concurrent use.
type clients struct {
	mu    sync.Mutex
	asked time.Time
	bytes map[string]uint64 // by session
}

func (s *Server) listClients(r *http.Request) (any, error) {
	if s.src.Sessions == nil {
		return nil, errUnable
	}
	limit := defaultClients
	if v := r.URL.Query().Get("limit"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > mostSessions {
			return nil, refuse(http.StatusBadRequest, "limit: %q is not within 1..%d", v, mostSessions)
		}
		limit = n
	}
	f, err := s.filter("", r.URL.Query().Get("pool"), r.URL.Query().Get("backend"), "")
	if err != nil {
		return nil, err
	}
	sessions, _ := s.src.Sessions(f, math.MaxInt)
	return s.clients.of(sessions, limit, time.Now()), nil
}

// of sums sessions up by the address of their clients.
func (c *clients) of(sessions []api.SessionStatus, limit int, now time.Time) api.ClientList {
	c.mu.Lock()
	defer c.mu.Unlock()
	over := now.Sub(c.asked)
	known := over >= rateGap && over <= clientRateAge
	grown := map[string]uint64{}
	bytes := make(map[string]uint64, len(sessions))
	byAddress := map[string]*api.ClientStatus{}
	for i := range sessions {
		x := &sessions[i]
		host := x.Client
		if h, _, err := net.SplitHostPort(x.Client); err == nil {
			host = h
		}
		st := byAddress[host]
		if st == nil {
			st = &api.ClientStatus{Address: host}
			byAddress[host] = st
		}
		st.Sessions++
		st.BytesIn += x.BytesIn
		st.BytesOut += x.BytesOut
		st.Oldest = max(st.Oldest, x.Age)
		total := x.BytesIn + x.BytesOut
		bytes[x.ID] = total
		if before, ok := c.bytes[x.ID]; ok || x.Started.After(c.asked) {
			grown[host] += total - min(before, total)
		}
	}
	if known || over > clientRateAge {
		c.asked, c.bytes = now, bytes
	}
	list := api.ClientList{Clients: []api.ClientStatus{}, Total: len(byAddress)}
	for host, st := range byAddress {
		if known {
			rate := float64(grown[host]) / over.Seconds()
			st.Rate = &rate
		}
		list.Clients = append(list.Clients, *st)
	}
	slices.SortFunc(list.Clients, func(a, b api.ClientStatus) int {
		return cmp.Or(cmp.Compare(b.Sessions, a.Sessions), cmp.Compare(b.BytesIn+b.BytesOut, a.BytesIn+a.BytesOut), cmp.Compare(a.Address, b.Address))
	})
	list.Clients = list.Clients[:min(limit, len(list.Clients))]
	return list
}
