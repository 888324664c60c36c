//go:build race

package proxy_test

// raceEnabled says that the detector is on, which allocates and makes pools forget on purpose.
const raceEnabled = true
