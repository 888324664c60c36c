package fairness

import (
	"path/filepath"
	"slices"
)

// Names of the contenders.
const (
	ContenderReusePort   = "reuseport"
	ContenderPrefork     = "prefork"
	ContenderLB          = "lb"
	ContenderHandoff     = "handoff"
	ContenderHandoffOne  = "handoff-1"
	ContenderHAProxy     = "haproxy"
	ContenderNginx       = "nginx"
	ContenderNodeCluster = "node-cluster"
	ContenderTarget      = "target"
)

// kind says what a contender is.
type kind struct {
	name string
	// title is its name in a sentence.
	title string
	about string
	// color is its own in every chart. They can be told apart by the color-blind too (Okabe and Ito, "Color
	// Universal Design").
	color string
	// subject means that it is a way to run lb: the verdicts are about it.
	subject bool
}

// kinds returns all contenders, in the order of the report.
func kinds() []kind {
	return []kind{
		{
			name: ContenderReusePort, title: "SO_REUSEPORT", color: "#d55e00",
			about: "each worker listens on the port itself (SO_REUSEPORT); the kernel spreads by a hash of the addresses",
		},
		{
			name: ContenderPrefork, title: "a shared listener", color: "#e69f00",
			about: "the workers share one listening socket that they inherit; whoever is first takes the connection",
		},
		{
			name: ContenderLB, title: "lb", color: "#0072b2", subject: true,
			about: "lb, least connections, Unix sockets; it runs the workers and hears their heartbeats",
		},
		{
			name: ContenderHandoff, title: "lb's hand-off", color: "#56b4e9", subject: true,
			about: "lb, least connections; it runs the workers and gives them the accepted sockets",
		},
		{
			name: ContenderHandoffOne, title: "lb's hand-off with a window of 1", color: "#5e3c99", subject: true,
			about: "as handoff; a worker is given a connection only when it has taken the one before (handoff_window = 1)",
		},
		{
			name: ContenderHAProxy, title: "haproxy", color: "#009e73",
			about: "haproxy, mode tcp, least connections, Unix sockets, HTTP checks every 500 ms",
		},
		{
			name: ContenderNginx, title: "nginx", color: "#cc79a7",
			about: "nginx stream, least connections, Unix sockets; it checks no health but failed connects",
		},
		{
			name: ContenderNodeCluster, title: "Node's cluster", color: "#7f4f00",
			about: "Node's cluster module: its primary process accepts, and gives each worker a connection in turn",
		},
		{name: ContenderTarget, title: "the address that was named", color: "#808080", about: "the address that was named"},
	}
}

// kindOf returns the contender of a name, which must be known.
func kindOf(name string) kind {
	all := kinds()
	i := slices.IndexFunc(all, func(k kind) bool { return k.name == name })
	if i < 0 {
		panic("BUG: no contender " + name)
	}
	return all[i]
}

// ContenderNames returns the names of all contenders, in the order of the report.
func ContenderNames() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

// contenders returns the names of those that are compared, where they can be. Unless they are named, these
// are all that the options make sense of, but for the second way to hand over.
func (o *Options) contenders() []string {
	if len(o.Contenders) > 0 {
		return o.Contenders
	}
	return slices.DeleteFunc(ContenderNames(), func(name string) bool {
		switch name {
		case ContenderHandoffOne:
			return true
		case ContenderNodeCluster:
			return !o.runsNode()
		case ContenderTarget:
			return o.Target == ""
		}
		return false
	})
}

// Compares reports whether the contender of that name is one of those that are compared.
func (o *Options) Compares(name string) bool { return slices.Contains(o.contenders(), name) }

// runsNode reports whether the user's own worker is a Node program.
func (o *Options) runsNode() bool {
	if len(o.Command) == 0 {
		return false
	}
	program := filepath.Base(o.Command[0])
	return program == "node" || program == "nodejs"
}

// handoff returns the mode in which lb hands sockets over to the workers: "lb", "node", or "" if these are
// not known to take any.
func (o *Options) handoff() string {
	switch {
	case o.Handoff != "":
		return o.Handoff
	case len(o.Command) == 0:
		return "lb"
	case o.runsNode():
		return "node"
	}
	return ""
}

// unable says why a contender cannot play a case; "" if it can.
func (o *Options) unable(name string, c *Case) string {
	own := len(o.Command) > 0
	binds := holds(o.Command, "{socket}") || holds(o.Command, "{port}")
	switch {
	case name == ContenderTarget && (c.Event != NoEvent || c.Slow > 0 || c.Weights != [2]int{}):
		return "its workers are not the benchmark's to change"
	case c.Slow > 0 && own:
		return "a worker of your own has no slow twin"
	case (name == ContenderReusePort || name == ContenderPrefork || name == ContenderNodeCluster) && c.Weights != [2]int{}:
		return "it knows no weights"
	case name == ContenderPrefork && binds, name == ContenderReusePort && holds(o.Command, "{socket}"):
		return "a worker that opens its socket itself cannot share it this way"
	case (name == ContenderHandoff || name == ContenderHandoffOne) && o.handoff() == "":
		return "a worker of your own may not take sockets; say how it does with --handoff lb or --handoff node"
	case (name == ContenderHandoff || name == ContenderHandoffOne) && o.handoff() == "lb" && binds:
		return "a worker that opens its socket itself takes none that is handed over"
	case name == ContenderNodeCluster && !o.runsNode():
		return "it needs a worker of your own that Node runs: --worker 'node app.js'"
	case (name == ContenderHAProxy || name == ContenderNginx) && holds(o.Command, "{port}"):
		return "a worker that wants a {port} is not run behind Unix sockets; use {socket}, or descriptor 3"
	case name == ContenderHAProxy && o.Programs.HAProxy == "":
		return "it is not installed"
	case name == ContenderNginx && o.Programs.Nginx == "":
		return "it, or its stream module, is not installed"
	case name == ContenderTarget && o.Target == "":
		return "no address was named"
	}
	return ""
}
