package bench

import (
	"slices"
	"testing"
)

func TestRunning_TellsWorkersFromTheBalancer(t *testing.T) {
	p := startChild(t, "parent")
	child, _ := grandchild(t, p)
	f := func(owns bool, balancer, workers []int) {
		t.Helper()
		r := &Running{Contender: Contender{OwnsWorkers: owns}, Process: p}
		gotBalancer, err := r.PIDs()
		if err != nil {
			t.Fatal(err)
		}
		gotWorkers, err := r.WorkerPIDs()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(balancer)
		if !slices.Equal(gotBalancer, balancer) || !slices.Equal(gotWorkers, workers) {
			t.Errorf("owns workers %v: got %v and %v; want %v and %v", owns, gotBalancer, gotWorkers, balancer, workers)
		}
	}
	f(true, []int{p.PID()}, []int{child})
	f(false, []int{p.PID(), child}, nil)
}
