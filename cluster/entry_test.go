package cluster

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestParseEntry_RefusesWhatIsNotSound(t *testing.T) {
	t.Parallel()
	const good = `{"address":"10.0.0.1:80","weight":100,"up":1,"connections":3}`
	if host, e, err := parseEntry("app/h1/web", []byte(good)); err != nil || host != "h1" || e.Pool != "app" || e.Listener != "web" || e.Weight != 100 {
		t.Errorf("got %q, %+v, error %v", host, e, err)
	}
	for name, test := range map[string]struct{ key, value, want string }{
		"a key of two parts":       {"app/h1", good, "POOL/HOST/LISTENER"},
		"control characters":       {"app/h1/w\x1b[2J", good, "no name"},
		"a path":                   {"app/../web", good, "no name"},
		"an empty name":            {"app//web", good, "no name"},
		"names that are too long":  {"app/" + strings.Repeat("h", 40) + "/" + strings.Repeat("w", 40), good, "too long"},
		"no JSON":                  {"app/h1/web", "rm -rf /", "no entry"},
		"a list":                   {"app/h1/web", "[]", "no entry"},
		"a word for a number":      {"app/h1/web", `{"address":"10.0.0.1:80","weight":"100"}`, "no entry"},
		"a huge number":            {"app/h1/web", `{"address":"10.0.0.1:80","weight":1e300}`, "no entry"},
		"a huge value":             {"app/h1/web", strings.Repeat(" ", maxValue) + good, "bytes"},
		"a weight below 0":         {"app/h1/web", `{"address":"10.0.0.1:80","weight":-1}`, "weight"},
		"a weight without measure": {"app/h1/web", `{"address":"10.0.0.1:80","weight":9999999}`, "weight"},
		"connections below 0":      {"app/h1/web", `{"address":"10.0.0.1:80","connections":-1}`, "below 0"},
		"a Unix socket":            {"app/h1/web", `{"address":"unix:/run/secret"}`, "address"},
		"a host name":              {"app/h1/web", `{"address":"localhost:80"}`, "address"},
		"every address":            {"app/h1/web", `{"address":"0.0.0.0:80"}`, "address"},
		"no port":                  {"app/h1/web", `{"address":"10.0.0.1:0"}`, "address"},
		"no address":               {"app/h1/web", `{}`, "address"},
	} {
		if _, e, err := parseEntry(test.key, []byte(test.value)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %+v, error %v; want an error with %q", name, e, err, test.want)
		}
	}
}

// rig is a cluster without etcd, and what it reports.
type rig struct {
	*Cluster
	refused []string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	c, err := New(Config{Name: "test", Host: "me", Endpoints: []string{"http://127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Cluster: c}
	c.Changed = func() {}
	c.Refused = func(key string, err error) { r.refused = append(r.refused, key) }
	return r
}

func kv(key, value string, revision int64) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte("/lb/test/pools/" + key), Value: []byte(value), ModRevision: revision}
}

func put(key, value string, revision int64) *clientv3.Event {
	return &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv(key, value, revision)}
}

func remove(key string) *clientv3.Event {
	return &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: kv(key, "", 0)}
}

// names are the backends of a pool, or why there are none.
func (r *rig) names(t *testing.T, pool string) string {
	t.Helper()
	a, err := r.LookUp(t.Context(), pool, 256)
	if err != nil {
		return err.Error()
	}
	var all []string
	for _, b := range a.Backends {
		all = append(all, b.Name)
	}
	return strings.Join(all, " ")
}

const sound = `{"address":"10.0.0.1:80","weight":100,"up":1,"connections":3}`

func TestCluster_AHostileValueChangesNothingAndIsReportedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	list := []*mvccpb.KeyValue{kv("app/h1/web", sound, 1), kv("app/h2/web", "garbage", 2), kv("app/h3/\x1b[2J", sound, 3)}
	r.replace(list)
	r.replace(list) // as after a lost watch
	if got := r.names(t, "app"); got != "h1.web" {
		t.Errorf("got backends %q; want h1.web", got)
	}
	r.apply([]*clientv3.Event{put("app/h1/web", `{"address":"unix:/etc/passwd"}`, 4)})
	if got := r.names(t, "app"); got != "h1.web" {
		t.Errorf("after garbage in the place of a sound value: got backends %q; want h1.web", got)
	}
	if want := []string{"/lb/test/pools/app/h2/web", "/lb/test/pools/app/h3/\x1b[2J", "/lb/test/pools/app/h1/web"}; !slices.Equal(r.refused, want) {
		t.Errorf("reported %q; want %q", r.refused, want)
	}
}

func TestCluster_OnlyWhatStaysDeletedIsRemoved(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.replace([]*mvccpb.KeyValue{kv("app/h1/web", sound, 1), kv("app/h2/web", sound, 2)})
	r.apply([]*clientv3.Event{remove("app/h1/web"), remove("app/h2/web")})
	if got := r.names(t, "app"); got != "h1.web h2.web" {
		t.Errorf("right after all was deleted: got %q", got)
	}
	r.apply([]*clientv3.Event{put("app/h1/web", sound, 4)})
	r.sweep(time.Now().Add(removeAfter + time.Second))
	if got := r.names(t, "app"); got != "h1.web" {
		t.Errorf("once one has written its entry again: got %q; want h1.web", got)
	}
	r.apply([]*clientv3.Event{remove("app/h1/web")})
	r.sweep(time.Now().Add(removeAfter + time.Second))
	if got := r.names(t, "app"); !strings.Contains(got, "no host") {
		t.Errorf("with no entry: got %q; want an error, so that the last known stay", got)
	}
}

func TestCluster_EtcdThatLostItsDataRemovesNobodyForALease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.replace([]*mvccpb.KeyValue{kv("app/h1/web", sound, 1), kv("app/h2/web", sound, 2)})
	r.lost = true
	r.replace([]*mvccpb.KeyValue{kv("app/h1/web", sound, 1)})
	r.sweep(time.Now().Add(leaseTTL * time.Second))
	if got := r.names(t, "app"); got != "h1.web h2.web" {
		t.Errorf("got %q; want both", got)
	}
	r.sweep(time.Now().Add(lostAfter + time.Second))
	if got := r.names(t, "app"); got != "h1.web" {
		t.Errorf("a lease later: got %q; want h1.web", got)
	}
	// Without a loss, a list is what there is.
	r.replace([]*mvccpb.KeyValue{kv("app/h3/web", sound, 9)})
	if got := r.names(t, "app"); got != "h3.web" {
		t.Errorf("got %q; want h3.web", got)
	}
	r.unread(errors.New("no answer"))
	if got := r.names(t, "app"); !strings.Contains(got, "no answer") {
		t.Errorf("while etcd is away: got %q; want why", got)
	}
}

func TestBackendsOf_ScalesWeightsBeyondLbs(t *testing.T) {
	t.Parallel()
	found := backendsOf(map[string]Entry{
		"h1.web": {Address: "10.0.0.1:80", Weight: 4000}, "h2.web": {Address: "10.0.0.2:80", Weight: 1000},
		"h3.web": {Address: "10.0.0.3:80", Weight: 1}, "h4.web": {Address: "10.0.0.4:80", Weight: 900, Draining: true}, "h5.web": {Address: "10.0.0.5:80"},
	})
	for _, b := range found {
		if want := map[string]int{"h1.web": 1000, "h2.web": 250, "h3.web": 1}[b.Name]; b.Weight != want {
			t.Errorf("%s: got weight %d; want %d", b.Name, b.Weight, want)
		}
		if err := b.Check(); err != nil {
			t.Error(err)
		}
	}
}

func TestConfig_Validate(t *testing.T) {
	t.Parallel()
	good := Config{Name: "prod", Endpoints: []string{"http://10.0.0.1:2379", "http://[fd00::1]:2379"}}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, test := range map[string]struct {
		change func(c *Config)
		want   string
	}{
		"no name":                    {func(c *Config) { c.Name = "" }, "name:"},
		"a path for a name":          {func(c *Config) { c.Name = "a/b" }, "name:"},
		"a host of control bytes":    {func(c *Config) { c.Host = "a\x1b" }, "host:"},
		"no endpoints":               {func(c *Config) { c.Endpoints = nil }, "endpoints: missing"},
		"no scheme":                  {func(c *Config) { c.Endpoints = []string{"10.0.0.1:2379"} }, "endpoints[0]"},
		"a password in the endpoint": {func(c *Config) { c.Endpoints = []string{"http://u:p@h:2379"} }, "endpoints[0]"},
		"http and https":             {func(c *Config) { c.Endpoints[0] = "https://h:2379" }, "all are https"},
		"a key without certificate":  {func(c *Config) { c.KeyFile = "/k" }, "key_file"},
		"a CA for http":              {func(c *Config) { c.CAFile = "/ca" }, "https endpoints"},
		"a user without a password":  {func(c *Config) { c.User = "lb" }, "password_file"},
	} {
		c := good
		c.Endpoints = slices.Clone(good.Endpoints)
		test.change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got error %v; want %q", name, err, test.want)
		}
	}
}
