//go:build e2e

package e2e

import (
	"fmt"
	"testing"
	"time"
)

// More sessions than fds: lb must go on serving those that it has, without spinning on the newcomers that it
// cannot accept, and must take others when some have closed.
func TestLimit_FileDescriptors(t *testing.T) {
	for _, c := range []struct {
		name    string
		noFile  int // of lb
		clients int
		fewest  int // how many sessions must fit: two fds each, with a fair rest for lb itself
		fleets  int
	}{
		{name: "few", noFile: 300, clients: 250, fewest: 40, fleets: 1},
		{name: "many", noFile: 20000, clients: 11000, fewest: 9500, fleets: 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			address := socketPath(tempDir(t), "w1")
			startLines(t, "w1", address)
			config := onePool(t, address)
			config.NoFile = c.noFile
			l := startLB(t, config)
			l.waitHealth(t, "up")
			f := startFleet(t, l.addr(), c.fleets)

			if got := f.open(t, c.clients); got.Failed != 0 {
				t.Errorf("clients that could not connect: got %d of %d; want 0, for the kernel queues them", got.Failed, c.clients)
			}
			full := waitSettled(t, f)
			if full.Served < c.fewest || full.Served > c.noFile/2 {
				t.Errorf("sessions served with %d fds: got %d; want %d to %d", c.noFile, full.Served, c.fewest, c.noFile/2)
			}
			t.Logf("%d fds: %d sessions served", c.noFile, full.Served)
			// To look now and then whether there is place again is no spinning; that would be a whole CPU.
			if got := l.cpuShare(t, 2*time.Second); got > 0.03 {
				t.Errorf("share of a CPU that lb uses at the limit: got %.3f; want less than 0.03", got)
			}
			if got := f.ping(t).Served; got != full.Served {
				t.Errorf("sessions that answer at the limit: got %d; want %d", got, full.Served)
			}
			if got := l.status(t).total(); got != full.Served {
				t.Errorf("sessions that lb counts at the limit: got %d; want %d", got, full.Served)
			}

			// Half of them close; others take their place.
			half := full.Served / 2
			f.closeServed(t, half)
			f.open(t, half)
			eventually(t, patience, func() error {
				if got := f.count(t).Served; got < full.Served-1 {
					return fmt.Errorf("sessions served after %d closed and %d came: got %d; want %d", half, half, got, full.Served)
				}
				return nil
			})
			f.closeAll(t)
			l.waitReleased(t)

			// Nothing was lost for good: as many as fit are served again, all of them.
			if got := f.open(t, c.fewest); got.Failed != 0 {
				t.Errorf("clients that could not connect afterwards: got %d; want 0", got.Failed)
			}
			eventually(t, patience, func() error {
				if got := f.count(t).Served; got != c.fewest {
					return fmt.Errorf("sessions served afterwards: got %d; want %d", got, c.fewest)
				}
				return nil
			})
			f.closeAll(t)
		})
	}
}

// waitSettled waits until the number of served clients has not changed for a second.
func waitSettled(t testing.TB, f *fleet) fleetCount {
	t.Helper()
	last, since := f.count(t), time.Now()
	eventually(t, 3*patience, func() error {
		if c := f.count(t); c != last {
			last, since = c, time.Now()
		}
		if time.Since(since) < time.Second {
			return fmt.Errorf("clients: got %+v and changing; want it to settle", last)
		}
		return nil
	})
	return last
}
