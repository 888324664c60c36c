package balancer

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/273ebdf9/lb/backends"
)

// BenchmarkPick is one acquire and one release; its cost must be of one order at 2 and at 256 backends.
func BenchmarkPick(b *testing.B) {
	for _, name := range policyNames {
		for _, n := range []int{2, 16, 256} {
			b.Run(fmt.Sprintf("%s/backends=%d", name, n), func(b *testing.B) {
				p := newPool(b, newPolicy(b, name), n, 1000)
				req := backends.Request{Client: netip.MustParseAddr("192.0.2.1")}
				var w backends.Waiter
				b.ReportAllocs()
				for b.Loop() {
					req.Client = req.Client.Next()
					got, err := p.Acquire(&req, &w)
					if err != nil {
						b.Fatal(err)
					}
					p.Release(got)
				}
			})
		}
	}
}

// BenchmarkSource_Build is a change of a weight and the pick after it.
func BenchmarkSource_Build(b *testing.B) {
	for _, n := range []int{2, 20, 256} {
		b.Run(fmt.Sprintf("backends=%d", n), func(b *testing.B) {
			p := newPool(b, new(Source), n, 0)
			req := backends.Request{Client: netip.MustParseAddr("192.0.2.1")}
			b.ReportAllocs()
			weight := 100
			for b.Loop() {
				weight = 199 - weight
				if err := p.SetWeight(p.Backends()[0], weight, "test"); err != nil {
					b.Fatal(err)
				}
				got, err := p.Acquire(&req, new(backends.Waiter))
				if err != nil {
					b.Fatal(err)
				}
				p.Release(got)
			}
		})
	}
}
