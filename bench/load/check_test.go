package load

import "testing"

func TestCheck_KnownLawGivesItsKnownQuantiles(t *testing.T) {
	for _, law := range []string{"exponential:200ms", "bimodal:200ms,600ms,0.2"} {
		// The machine may be busy with others; the client says so then, and such a run proves nothing.
		c, err := CheckQuietly(t.Context(), MustLaw(law), 600, 600, 1)
		if err != nil {
			t.Fatal(err)
		}
		if c.Behind != "" {
			t.Skipf("%s: this machine is too busy: %s", law, c.Behind)
		}
		if !c.OK() {
			t.Errorf("%s: got %+v; want each within 2%%", law, c)
		}
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
