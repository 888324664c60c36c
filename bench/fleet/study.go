package fleet

import (
	"fmt"
	"runtime"
	"sync"
	"time"
)

// Case is a set of runs that differ in the policy alone.
type Case struct {
	Name string
	// Why says what the case stands for.
	Why    string
	Config Config // without a policy
	// Policies are those that run; nil means all.
	Policies []Policy
}

// Study is what a report is made of.
type Study struct {
	Seed    uint64
	Quick   bool
	Cases   []Case
	Results [][]*Result // by case and policy
	Source  []SourceResult
	Took    time.Duration
}

const long, short = 20 * time.Second, 100 * time.Millisecond

// Cases returns the cases of a study. Quick ones take seconds, in all; the others go up to 200 fronts, 10 000
// backends and ten million clients a minute, and take minutes.
func Cases(seed uint64, quick bool) []Case {
	base := Config{Seed: seed, Load: 0.8, Spread: 1.5, Age: time.Second, Detect: time.Second}
	var cases []Case
	add := func(name, why string, fronts, backends int, rate float64, hold, length time.Duration, change func(*Config)) {
		c := base
		c.Fronts, c.Backends, c.Rate, c.Hold, c.Time = fronts, backends, rate, hold, length
		if change != nil {
			change(&c)
		}
		cases = append(cases, Case{Name: name, Why: why, Config: c})
	}
	age := func(d time.Duration) func(*Config) { return func(c *Config) { c.Age = d } }
	event := func(e Event) func(*Config) { return func(c *Config) { c.Event = e } }

	add("two fronts, long", "two fronts, eight hosts, connections of 20 s on average: what most teams with two fronts have",
		2, 8, 20, long, 100*time.Second, nil)
	add("two fronts, few", "the same with four connections a second: ten on each host", 2, 8, 4, long, 200*time.Second, nil)
	add("many fronts, long", "20 fronts, 100 hosts; five connections of each front on each host", 20, 100, 500, long, 100*time.Second, nil)
	add("many fronts, few", "20 fronts, 100 hosts; half a connection of each front on each host", 20, 100, 50, long, 100*time.Second, nil)
	add("counts 0.1 s old", "as before, published ten times a second", 20, 100, 50, long, 100*time.Second, age(100*time.Millisecond))
	add("counts 5 s old", "as before, published every 5 s", 20, 100, 50, long, 100*time.Second, age(5*time.Second))
	add("short", "20 fronts, 100 hosts, connections of 100 ms: they end before their counts are published", 20, 100, 5000, short, 20*time.Second, nil)
	add("a tenth dies", "every tenth host dies at a third of the time and comes back at two thirds", 20, 100, 500, 5*time.Second, 60*time.Second, event(TenthDies))
	add("all fronts restart", "every session ends at half of the time; clients come back within a second", 20, 100, 500, 5*time.Second, 60*time.Second, event(FrontsRestart))
	if quick {
		return cases
	}
	add("large, long", "200 fronts, 1000 hosts, a million clients a minute, connections of 20 s", 200, 1000, 1e6/60, long, 60*time.Second, nil)
	add("large, counts 0.1 s old", "as before, published ten times a second", 200, 1000, 1e6/60, long, 60*time.Second, age(100*time.Millisecond))
	add("large, a tenth dies", "as before, and every tenth host dies", 200, 1000, 1e6/60, 5*time.Second, 60*time.Second, event(TenthDies))
	add("large, all fronts restart", "as before, and every front restarts", 200, 1000, 1e6/60, 5*time.Second, 60*time.Second, event(FrontsRestart))
	add("ten million a minute", "50 fronts, 2000 hosts, ten million clients a minute, connections of 1 s", 50, 2000, 1e7/60, time.Second, 15*time.Second, nil)
	add("10 000 hosts", "20 fronts, 10 000 hosts, five million clients a minute, connections of 2 s", 20, 10_000, 5e6/60, 2*time.Second, 15*time.Second, nil)
	return cases
}

// Run runs all cases, as many at a time as there are CPUs, and reports each that is done.
func (st *Study) Run(done func(text string)) error {
	started := time.Now()
	st.Cases = Cases(st.Seed, st.Quick)
	st.Results = make([][]*Result, len(st.Cases))
	var running sync.WaitGroup
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range st.Cases {
		c := &st.Cases[i]
		if c.Policies == nil {
			c.Policies = Policies
		}
		st.Results[i] = make([]*Result, len(c.Policies))
		for j, policy := range c.Policies {
			slots <- struct{}{}
			running.Go(func() {
				defer func() { <-slots }()
				cfg := c.Config
				cfg.Policy = policy
				r, err := Run(cfg)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed = fmt.Errorf("case %q, policy %q: %w", c.Name, policy, err)
					return
				}
				st.Results[i][j] = r
				done(fmt.Sprintf("%s: %s", c.Name, policy))
			})
		}
	}
	running.Wait()
	if failed != nil {
		return failed
	}
	source, err := RunSource(st.Seed, sourceSizes(st.Quick))
	st.Source, st.Took = source, time.Since(started)
	return err
}
