package load

import "testing"

// What a busy machine adds to the latency it adds to the measured one only: that is never too short. How much
// too long it is can be judged only where the client was on time.
func TestCheck_KnownLawGivesItsKnownQuantiles(t *testing.T) {
	for _, law := range []string{"exponential:200ms", "bimodal:200ms,600ms,0.2"} {
		t.Run(law, func(t *testing.T) {
			t.Parallel()
			c, err := Check(t.Context(), MustLaw(law), 600, 600, 1)
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range c.Quantiles {
				if q.Error() < -0.002 { // the histogram counts three digits
					t.Errorf("got %+v; want at least the law's", q)
				}
			}
			if limit := c.Quantiles[0].Known / 100; c.LagP99 > limit {
				t.Skipf("not judged how much too long: this machine is too busy, the client was %v late, above %v", c.LagP99, limit)
			}
			if !c.OK() {
				t.Errorf("got %+v; want each within 2%%", c)
			}
		})
	}
}

func TestCheck_FindsAClientThatIsLate(t *testing.T) {
	c, err := Check(t.Context(), MustLaw("constant:10ms"), 50, 200, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.Quantiles {
		c.Quantiles[i].Measured = c.Quantiles[i].Known * 103 / 100
	}
	if c.OK() {
		t.Errorf("got %+v as good; want 3%% off to be too much", c)
	}
}
