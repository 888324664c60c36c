package logs

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace_BoundsAllTogetherAndTreatsThemAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const workers, step, long = 8, time.Millisecond, 100 * time.Second
		var p Pace
		var spent [workers]atomic.Int64
		var all sync.WaitGroup
		end := time.Now().Add(long)
		for i := range spent {
			all.Go(func() {
				for time.Now().Before(end) {
					spent[i].Add(int64(step))
					time.Sleep(p.Spend(step))
				}
			})
		}
		all.Wait()
		var sum time.Duration
		for i := range spent {
			own := time.Duration(spent[i].Load())
			sum += own
			if even := long / paceShare / workers; own < even*9/10 || own > even*11/10 {
				t.Errorf("worker %d: got %v; want about %v", i, own, even)
			}
		}
		if most := long/paceShare + 2*paceBurst; sum > most {
			t.Errorf("all: got %v; want at most %v", sum, most)
		}
	})
}
