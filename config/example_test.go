package config_test

import (
	"errors"
	"fmt"

	"github.com/273ebdf9/lb/config"
)

func ExampleParse() {
	_, err := config.Parse("lb.toml", []byte(`
[listeners.web]
bind = "127.0.0.1:8080"
pool = "app"

[pools.app]
idle_timout = "10m"

[[pools.app.backends]]
address = "unix:/run/app/w1.sock"
weight = 1001
`))
	var faults *config.Error
	if errors.As(err, &faults) {
		for _, f := range faults.Faults {
			fmt.Println(f)
		}
	}
	// Output: lb.toml:3: listeners.web.bind: "127.0.0.1:8080" is a string where a list belongs; write ["127.0.0.1:8080"]
	// lb.toml:7: pools.app.idle_timout: unknown key; did you mean "idle_timeout"?
	// lb.toml:11: pools.app.backends[0].weight: 1001 is not within 0..1000
}
