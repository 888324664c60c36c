package load

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLaw_DrawsHaveItsMeanAndQuantiles(t *testing.T) {
	for _, text := range []string{"constant:10ms", "exponential:20ms", "bimodal:5ms,1s,0.01", "pareto:4ms,500ms,1.2"} {
		law := MustLaw(text)
		const n = 400_000
		random := rand.New(rand.NewPCG(1, 2))
		draws := make([]float64, n)
		sum := 0.0
		for i := range draws {
			draws[i] = law.Quantile(random.Float64()).Seconds()
			sum += draws[i]
		}
		slices.Sort(draws)
		if got, want := sum/n, law.Mean().Seconds(); math.Abs(got/want-1) > 0.02 {
			t.Errorf("%s: got the mean %v; want %v within 2%%", text, got, want)
		}
		for _, q := range []float64{0.5, 0.9, 0.98} {
			if got, want := draws[int(q*n)], law.Quantile(q).Seconds(); math.Abs(got/want-1) > 0.02 {
				t.Errorf("%s: got %v at %v; want %v within 2%%", text, got, q, want)
			}
		}
		if law.String() != text {
			t.Errorf("got %q; want %q", law, text)
		}
	}
}

func TestLaw_ParetoStaysWithinItsBounds(t *testing.T) {
	law := MustLaw("pareto:2ms,1s,1.1")
	if got := law.Quantile(0); got != 2*time.Millisecond {
		t.Errorf("got %v at 0; want the least", got)
	}
	if got := law.Quantile(math.Nextafter(1, 0)); got > time.Second || got < 999*time.Millisecond {
		t.Errorf("got %v at almost 1; want the greatest", got)
	}
}

func TestParseLaw_SaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		"normal:10ms":           "there is no law \"normal\"; write one of constant:T",
		"constant":              "no time such as 10ms",
		"constant:10":           "no time such as 10ms",
		"exponential:0s":        "the mean must be above 0",
		"bimodal:1ms,2ms":       "has not the form bimodal:SHORT,LONG,SHARE",
		"bimodal:1ms,2ms,2":     "not within 0..1",
		"bimodal:1ms,2ms,x":     "\"x\" is no number",
		"pareto:2ms,1ms,1.5":    "the least must be above 0 and below the greatest",
		"pareto:2ms,1s,1":       "the shape must be above 0, and not 1",
		"constant:100000h":      "up to 1h",
		"pareto:-2ms,1s,1.2":    "no time",
		"bimodal:1ms,2ms,NaN":   "is no number",
		"exponential:10ms,20ms": "has not the form",
	} {
		if _, err := ParseLaw(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v; want %q", text, err, want)
		}
	}
}
