package supervisor

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

func TestLookout_ThoseWhoAskMeanwhileShareTheNextLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l lookout
		var asking sync.WaitGroup
		looks, missed := 0, errors.New("missed")
		var gates []chan struct{}
		ask := func(want int) {
			asking.Go(func() {
				all, err := l.see(func() (relatives, error) {
					looks++
					n, gate := looks, make(chan struct{})
					gates = append(gates, gate)
					<-gate
					return relatives{n: {pid: n}}, missed
				})
				if _, ok := all[want]; !ok || err != missed {
					t.Errorf("got %v, %v; want look %d and its error", all, err, want)
				}
			})
			synctest.Wait()
		}
		ask(1)
		for range 3 {
			ask(2) // the first one may have missed what they ask for
		}
		close(gates[0])
		synctest.Wait()
		ask(3)
		close(gates[1])
		synctest.Wait()
		close(gates[2])
		asking.Wait()
		if looks != 3 {
			t.Errorf("got %d looks; want 3", looks)
		}
	})
}
