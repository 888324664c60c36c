// Package cluster is what several lbs share through etcd: which of them there are, and where their pools can
// be reached from other hosts.
//
// Run owns every goroutine, and the connections to etcd; before it nothing is opened. What comes from etcd is
// checked before it is used: a value that is not sound is left out by its key, and the one that was there
// before stays. That etcd is away, or has lost its quorum or its data, removes nothing. The package never
// takes a command, a path or an address to listen on from etcd.
package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/273ebdf9/lb/discovery"
)

const (
	// leaseTTL is how long what an lb says stands without it, in seconds.
	leaseTTL = 10
	// checkEvery is how often etcd is asked whether it is there; checkTimeout is how long it has for that.
	checkEvery   = 2 * time.Second
	checkTimeout = 2 * time.Second
	// publishEvery is the least time between two changes of what an lb publishes.
	publishEvery = time.Second
	// retry is the time between two attempts to reach etcd.
	retry = time.Second
	// removeAfter is how long an entry stays whose key was deleted: a mistake is mended within that time, as
	// each lb writes its own again. After etcd has lost its data it is lostAfter, in which all have new
	// leases.
	removeAfter = 2 * time.Second
	lostAfter   = (leaseTTL + 5) * time.Second
)

// Cluster is this lb's part in a cluster. Make it with New, set its fields, and call Run.
type Cluster struct {
	// Published returns what this lb publishes at the moment, and itself.
	Published func() ([]Entry, Member)
	// Changed is called when what Pool returns may have changed.
	Changed func()
	// Refused reports a value of etcd that is not used, once for each.
	Refused func(key string, err error)
	// Unpublished reports that etcd does not take what this lb publishes, once until it does again, and then
	// with nil.
	Unpublished func(err error)

	cfg    Config
	host   string
	prefix string
	awake  chan struct{} // holds one: publish now

	mu      sync.Mutex
	pools   map[string]map[string]Entry // guarded by mu: by pool, and by the name of the backend
	gone    map[goneEntry]time.Time     // guarded by mu: entries that were deleted, and when they are removed
	err     error                       // guarded by mu: why etcd cannot be read; nil if it can
	read    chan struct{}               // closed with the first list
	refused map[string]int64            // by the watching goroutine: revisions of keys that were reported
	// by the watching goroutine: etcd has lost its data since the last list
	lost bool
}

// goneEntry is an entry that was deleted.
type goneEntry struct{ pool, name string }

// errLost: what etcd says now has another past than what it said before.
var errLost = errors.New("etcd has lost what it had: it is read anew")

// New returns the lb's part in the cluster of cfg, which must be valid. It opens nothing.
func New(cfg Config) (*Cluster, error) {
	host, err := cfg.EffectiveHost()
	if err != nil {
		return nil, err
	}
	return &Cluster{
		cfg: cfg, host: host, prefix: "/lb/" + cfg.Name + "/", awake: make(chan struct{}, 1),
		pools: map[string]map[string]Entry{}, gone: map[goneEntry]time.Time{}, err: errors.New("etcd has not answered yet"), read: make(chan struct{}), refused: map[string]int64{},
	}, nil
}

// Host returns the name of this lb in the cluster.
func (c *Cluster) Host() string { return c.host }

// Wake has Run publish soon.
func (c *Cluster) Wake() {
	select {
	case c.awake <- struct{}{}:
	default:
	}
}

// LookUp returns what the hosts of the cluster publish of a pool, as discovery.Watcher.LookUp. It waits for
// the first list, until ctx is done. The error says why etcd cannot be read, or that nobody publishes the
// pool, which is taken for a mistake.
func (c *Cluster) LookUp(ctx context.Context, pool string, limit int) (discovery.Answer, error) {
	select {
	case <-c.read:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return discovery.Answer{}, fmt.Errorf("cannot read from etcd: %w", c.err)
	}
	entries := c.pools[pool]
	switch {
	case len(entries) == 0:
		return discovery.Answer{}, fmt.Errorf("no host of cluster %q publishes pool %q", c.cfg.Name, pool)
	case len(entries) > limit:
		return discovery.Answer{}, fmt.Errorf("%d listeners of pool %q are published, and discover_max is %d", len(entries), pool, limit)
	}
	return discovery.NewAnswer(backendsOf(entries)), nil
}

// Run keeps in touch with etcd until ctx is done. It takes back then what this lb publishes.
func (c *Cluster) Run(ctx context.Context) {
	for {
		err := c.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		c.unread(err)
		if !sleep(ctx, retry) {
			return
		}
	}
}

// connect makes the client, and watches and publishes with it until ctx is done.
func (c *Cluster) connect(ctx context.Context) error {
	secure, err := c.cfg.tls()
	if err != nil {
		return err
	}
	password, err := c.cfg.password()
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: c.cfg.Endpoints, TLS: secure, Username: c.cfg.User, Password: password, Logger: zap.NewNop(),
		DialTimeout: checkTimeout, DialKeepAliveTime: checkEvery, DialKeepAliveTimeout: checkTimeout,
	})
	if err != nil {
		return plain(err)
	}
	defer client.Close()
	var running sync.WaitGroup
	running.Go(func() { c.watch(ctx, client) })
	running.Go(func() { c.publish(ctx, client) })
	running.Wait()
	return nil
}

// watch keeps the entries of all pools up to date until ctx is done.
func (c *Cluster) watch(ctx context.Context, client *clientv3.Client) {
	for ctx.Err() == nil {
		err := c.follow(ctx, client)
		c.lost = c.lost || errors.Is(err, errLost)
		if ctx.Err() == nil {
			c.unread(plain(err))
			sleep(ctx, retry)
		}
	}
}

// follow reads all entries, and then their changes, until something fails.
func (c *Cluster) follow(ctx context.Context, client *clientv3.Client) error {
	all, err := c.list(ctx, client)
	if err != nil {
		return err
	}
	c.replace(all.Kvs)
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	changes := client.Watch(ctx, c.prefix+poolsPart, clientv3.WithPrefix(), clientv3.WithRev(all.Header.Revision+1))
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	last := all.Header.Revision
	for {
		select {
		case r, ok := <-changes:
			if !ok {
				return errors.New("etcd has ended the watch")
			}
			if err := r.Err(); err != nil {
				return err
			}
			last = max(last, r.Header.Revision)
			c.apply(r.Events)
		case <-check.C:
			// A node without a quorum answers nobody; one that was made anew has another past.
			short, cancel := context.WithTimeout(ctx, checkTimeout)
			r, err := client.Get(short, c.prefix+poolsPart, clientv3.WithPrefix(), clientv3.WithCountOnly())
			cancel()
			if err != nil {
				return err
			}
			if r.Header.Revision < last || r.Header.ClusterId != all.Header.ClusterId {
				return errLost
			}
			c.readable()
			c.sweep(time.Now())
		}
	}
}

// poolsPart is where the entries are, below the prefix of the cluster.
const poolsPart = "pools/"

func (c *Cluster) list(ctx context.Context, client *clientv3.Client) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*checkTimeout)
	defer cancel()
	return client.Get(ctx, c.prefix+poolsPart, clientv3.WithPrefix())
}

// replace takes a whole list. Of a key whose value is not sound, the entry from before stays.
func (c *Cluster) replace(kvs []*mvccpb.KeyValue) {
	c.mu.Lock()
	old := c.pools
	c.pools = map[string]map[string]Entry{}
	for _, kv := range kvs {
		c.putLocked(kv, old)
	}
	for pool, entries := range old {
		for name, e := range entries {
			if _, listed := c.pools[pool][name]; !listed && c.lost {
				c.setLocked(pool, name, e)
				c.gone[goneEntry{pool, name}] = time.Now().Add(lostAfter)
			}
		}
	}
	c.err, c.lost = nil, false
	first := c.read
	select {
	case <-first:
	default:
		close(first)
	}
	c.mu.Unlock()
	c.Changed()
}

// apply takes the changes of one moment.
func (c *Cluster) apply(events []*clientv3.Event) {
	if len(events) == 0 {
		return
	}
	own := false
	c.mu.Lock()
	for _, ev := range events {
		if ev.Type == clientv3.EventTypePut {
			c.putLocked(ev.Kv, c.pools)
			continue
		}
		delete(c.refused, string(ev.Kv.Key))
		parts := strings.Split(strings.TrimPrefix(string(ev.Kv.Key), c.prefix+poolsPart), "/")
		if len(parts) == 3 {
			c.gone[goneEntry{parts[0], backendName(parts[1], parts[2])}] = time.Now().Add(removeAfter)
			own = own || parts[1] == c.host
		}
	}
	c.mu.Unlock()
	c.Changed()
	if own {
		c.Wake() // somebody has deleted what this lb says
	}
}

// sweep removes the entries whose time is over since they were deleted.
func (c *Cluster) sweep(now time.Time) {
	c.mu.Lock()
	removed := false
	for g, when := range c.gone {
		if now.After(when) {
			delete(c.pools[g.pool], g.name)
			delete(c.gone, g)
			removed = true
		}
	}
	c.mu.Unlock()
	if removed {
		c.Changed()
	}
}

// putLocked takes the value of a key, or reports it and keeps what before has.
func (c *Cluster) putLocked(kv *mvccpb.KeyValue, before map[string]map[string]Entry) {
	key := string(kv.Key)
	rest := strings.TrimPrefix(key, c.prefix+poolsPart)
	host, e, err := parseEntry(rest, kv.Value)
	if err == nil {
		delete(c.refused, key)
		c.setLocked(e.Pool, backendName(host, e.Listener), e)
		return
	}
	if c.refused[key] != kv.ModRevision {
		c.refused[key] = kv.ModRevision
		c.Refused(key, err)
	}
	if parts := strings.Split(rest, "/"); len(parts) == 3 {
		name := backendName(parts[1], parts[2])
		if old, ok := before[parts[0]][name]; ok {
			c.setLocked(parts[0], name, old)
		}
	}
}

func (c *Cluster) setLocked(pool, name string, e Entry) {
	if c.pools[pool] == nil {
		c.pools[pool] = map[string]Entry{}
	}
	c.pools[pool][name] = e
	delete(c.gone, goneEntry{pool, name})
}

// unread notes that etcd cannot be read.
func (c *Cluster) unread(err error) {
	c.mu.Lock()
	turn := c.err == nil
	c.err = err
	c.mu.Unlock()
	if turn {
		c.Changed()
	}
}

// readable notes that etcd can be read.
func (c *Cluster) readable() {
	c.mu.Lock()
	turn := c.err != nil
	c.err = nil
	c.mu.Unlock()
	if turn {
		c.Changed()
	}
}

// publish writes down what this lb publishes, under a lease, until ctx is done.
func (c *Cluster) publish(ctx context.Context, client *clientv3.Client) {
	failing := false
	note := func(err error) {
		if ctx.Err() == nil && failing != (err != nil) {
			failing = err != nil
			c.Unpublished(plain(err))
		}
	}
	for ctx.Err() == nil {
		note(c.lease(ctx, client, note))
		sleep(ctx, retry)
	}
}

// lease takes a lease and publishes under it until the lease is lost, or ctx is done: then it gives it back,
// and with it all that stands under it. note gets what became of each attempt to write: one that fails is
// made again, and what was written before stands.
func (c *Cluster) lease(ctx context.Context, client *clientv3.Client, note func(error)) error {
	short, cancel := context.WithTimeout(ctx, 2*checkTimeout)
	lease, err := client.Grant(short, leaseTTL)
	cancel()
	if err != nil {
		return err
	}
	defer func() {
		if ctx.Err() == nil {
			return
		}
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), checkTimeout)
		defer cancel()
		client.Revoke(end, lease.ID)
	}()
	alive, err := client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	var said said
	tick := time.NewTicker(publishEvery)
	defer tick.Stop()
	for {
		note(c.say(ctx, client, lease.ID, &said))
		select {
		case _, ok := <-alive:
			if !ok {
				return errors.New("the lease is lost")
			}
		case <-tick.C:
		case <-c.awake:
			said = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// said is what stands in etcd of this lb, by key.
type said map[string]any

// say writes what has changed enough since it was said.
func (c *Cluster) say(ctx context.Context, client *clientv3.Client, lease clientv3.LeaseID, s *said) error {
	entries, member := c.Published()
	now := said{c.prefix + "members/" + c.host: member}
	for _, e := range entries {
		now[c.prefix+poolsPart+e.Pool+"/"+c.host+"/"+e.Listener] = e
	}
	var ops []clientv3.Op
	next := said{}
	for key, v := range now {
		if old, ok := (*s)[key]; ok && !differs(old, v) {
			next[key] = old
			continue
		}
		text, err := json.Marshal(v)
		if err != nil {
			panic("BUG: cluster: what is no JSON: " + err.Error())
		}
		ops, next[key] = append(ops, clientv3.OpPut(key, string(text), clientv3.WithLease(lease))), v
	}
	for key := range *s {
		if _, ok := now[key]; !ok {
			ops = append(ops, clientv3.OpDelete(key))
		}
	}
	for len(ops) > 0 { // etcd takes 128 in one transaction
		n := min(len(ops), 100)
		short, cancel := context.WithTimeout(ctx, 2*checkTimeout)
		_, err := client.Txn(short).Then(ops[:n]...).Commit()
		cancel()
		if err != nil {
			return err
		}
		ops = ops[n:]
	}
	*s = maps.Clone(next)
	return nil
}

// differs reports whether a value is to be written again: numbers of connections only when they have changed
// by a twentieth.
func differs(old, now any) bool {
	switch now := now.(type) {
	case Entry:
		before := old.(Entry)
		few := moved(before.Connections, now.Connections)
		before.Connections = now.Connections
		return few || before != now
	case Member:
		before := old.(Member)
		few := moved(before.Sessions, now.Sessions)
		before.Sessions = now.Sessions
		return few || before != now
	}
	return true
}

// moved reports whether a number has changed by a twentieth or more.
func moved(from, to int64) bool {
	d := to - from
	return max(d, -d)*20 >= max(from, 1) && d != 0
}

// plain says in words what etcd's client reports.
func plain(err error) error {
	switch text := fmt.Sprint(err); {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded), strings.Contains(text, "DeadlineExceeded"):
		return fmt.Errorf("no answer within %v", checkTimeout)
	}
	return err
}

// sleep waits for d. It returns false if ctx was done first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
