package fleet

import "math/rand/v2"

// view is one idea of how loaded every backend is: a front's, or the true one. It finds the least loaded by
// weight as balancer.LeastConn does: backends that are less than a connection apart tie; those of one weight
// take turns, and the two weights that there are go by their shares.
type view struct {
	load   []int32 // in units: unit of them are a connection
	unit   int64
	weight []int32 // of the backend; 0 while it is known to be away
	last   []int64 // number of the pick that chose it last
	picks  int64
	groups [2]group // of weight 1 and 2
	place  []int32  // of a backend in its group's members
}

// group is the backends of one weight, in a tournament.
type group struct {
	weight  int64
	members []int32
	tree    []int32 // the root is number 1, leaves begin at len(members)
	known   int     // how many are not away
	behind  float64 // by how many connections it is behind its share
}

func newView(weights []int32, order []int32, unit int) *view {
	n := len(weights)
	v := &view{load: make([]int32, n), unit: int64(unit), weight: append([]int32(nil), weights...), last: make([]int64, n), place: make([]int32, n)}
	for turn, b := range order {
		v.last[b] = int64(turn - n)
		g := &v.groups[weights[b]-1]
		v.place[b] = int32(len(g.members))
		g.members = append(g.members, b)
	}
	for i := range v.groups {
		g := &v.groups[i]
		g.weight, g.known = int64(i+1), len(g.members)
		g.tree = append(make([]int32, len(g.members)), g.members...)
		for j := len(g.members) - 1; j >= 1; j-- {
			g.tree[j] = v.better(g.tree[2*j], g.tree[2*j+1])
		}
	}
	return v
}

// better returns the one of two backends of a group that goes first.
func (v *view) better(i, j int32) int32 {
	if v.weight[j] == 0 || v.weight[i] != 0 && (v.load[i] < v.load[j] || v.load[i] == v.load[j] && v.last[i] <= v.last[j]) {
		return i
	}
	return j
}

// lighter returns the less loaded of any two.
func (v *view) lighter(i, j int32) int32 {
	a, b := int64(v.load[i])*int64(v.weight[j]), int64(v.load[j])*int64(v.weight[i])
	if a < b || a == b && v.last[i] <= v.last[j] {
		return i
	}
	return j
}

// groupOf is the group that b was made a member of.
func (v *view) groupOf(b int32) *group {
	if p, g := v.place[b], &v.groups[0]; int(p) < len(g.members) && g.members[p] == b {
		return g
	}
	return &v.groups[1]
}

// update puts backend b in its place after a change.
func (v *view) update(b int32) {
	g := v.groupOf(b)
	for i := (len(g.members) + int(v.place[b])) / 2; i >= 1; i /= 2 {
		g.tree[i] = v.better(g.tree[2*i], g.tree[2*i+1])
	}
}

func (v *view) setLoad(b, load int32) {
	v.load[b] = max(load, 0)
	v.update(b)
}

// setWeight has b be away, with weight 0, or back.
func (v *view) setWeight(b, weight int32) {
	g := v.groupOf(b)
	switch {
	case weight == 0 && v.weight[b] != 0:
		g.known--
	case weight != 0 && v.weight[b] == 0:
		g.known++
	}
	v.weight[b] = weight
	v.update(b)
}

// least picks the least loaded; -1 if all are away.
func (v *view) least() int32 {
	var leaders [2]int32
	sum := 0.0
	for i := range v.groups {
		g := &v.groups[i]
		leaders[i] = -1
		if g.known > 0 {
			leaders[i] = g.tree[1]
			sum += float64(g.weight) * float64(g.known)
		}
	}
	b := leaders[0]
	switch {
	case leaders[0] < 0 && leaders[1] < 0:
		return -1
	case leaders[0] < 0:
		b = leaders[1]
	case leaders[1] >= 0:
		b = v.among(leaders, sum)
	}
	v.picked(b)
	return b
}

// among picks one of the groups' leaders: those that tie go by their shares (balancer.LeastConn).
func (v *view) among(leaders [2]int32, sum float64) int32 {
	light, heavy := &v.groups[0], &v.groups[1]
	share := float64(heavy.weight) * float64(heavy.known) / sum
	heavy.behind = min(heavy.behind+share, 10)
	l, h := int64(v.load[leaders[0]]), int64(v.load[leaders[1]])
	pick := 0
	switch {
	case h*light.weight >= (l+v.unit)*heavy.weight: // more than a connection above
	case l*heavy.weight >= (h+v.unit)*light.weight:
		pick = 1
	case heavy.behind >= 0.5:
		pick = 1
	}
	if pick == 1 {
		heavy.behind = max(heavy.behind-1, -10)
	}
	return leaders[pick]
}

func (v *view) picked(b int32) {
	v.picks++
	v.last[b] = v.picks
	v.update(b)
}

// urn draws backends by weight.
type urn struct {
	upTo []int64 // sums of the weights up to each backend
}

func (u *urn) fill(weights []int32) {
	u.upTo = u.upTo[:0]
	sum := int64(0)
	for _, w := range weights {
		sum += int64(w)
		u.upTo = append(u.upTo, sum)
	}
}

// draw returns a backend, or -1 if all weights are 0.
func (u *urn) draw(rnd *rand.Rand) int32 {
	sum := u.upTo[len(u.upTo)-1]
	if sum == 0 {
		return -1
	}
	x := rnd.Int64N(sum)
	lo, hi := 0, len(u.upTo)-1
	for lo < hi {
		if mid := (lo + hi) / 2; u.upTo[mid] > x {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return int32(lo)
}
