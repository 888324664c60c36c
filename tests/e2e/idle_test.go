//go:build e2e

package e2e

import (
	"testing"
	"time"
)

func TestIdle_UsesNoCPU(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	startHolder(t, address)
	l := startLB(t, onePool(t, address))
	conns := dialAll(t, l.addr(), 100)
	for _, conn := range conns {
		say(t, conn, "one word, then silence")
	}
	l.waitActive(t, 100)
	if got := l.cpuShare(t, 5*time.Second); got >= 0.01 {
		t.Errorf("share of a CPU that lb uses with 100 idle sessions: got %.4f; want less than 0.01", got)
	}
	for _, conn := range conns {
		conn.Close()
	}
}
