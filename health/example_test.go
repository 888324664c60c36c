package health_test

import (
	"context"
	"fmt"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/health"
)

func ExampleChecker() {
	cfg := health.DefaultConfig()
	cfg.Interval = 5 * time.Second

	pool := backends.NewPool("app", backends.DefaultConfig(), policy{})
	w1 := backends.DefaultBackendConfig()
	w1.Name, w1.Address = "w1", "unix:/nonexistent/w1.sock"
	if _, err := pool.Add(w1, cfg.InitialHealth()); err != nil {
		fmt.Println(err)
		return
	}

	ctx, cancel := context.WithCancel(context.Background())
	pool.OnChange = func(c backends.Change) {
		fmt.Printf("%s/%s is %s: %s\n", c.Pool, c.Backend, c.To, c.Reason)
		cancel()
	}
	checker, err := health.NewChecker(pool, cfg)
	if err != nil {
		fmt.Println(err)
		return
	}
	checker.Run(ctx)
	fmt.Println("failures in a row:", checker.Status(pool.Get("w1")).Failures)
	// Output:
	// app/w1 is down: no such file or directory
	// failures in a row: 1
}

// policy is for the example; package balancer has real ones.
type policy struct{}

func (policy) Pick(*backends.Request) *backends.Backend { return nil }
func (policy) Update(*backends.Backend)                 {}
func (policy) Reset([]*backends.Backend)                {}
