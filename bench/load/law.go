package load

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Law is a distribution of service times. The zero value is the constant 0.
type Law struct {
	kind   string
	params []float64 // of durations in seconds
	text   string
}

// laws are the kinds of law: what stands in the parentheses of ParseLaw, and what makes it a law.
var laws = []struct {
	kind, params string
	check        func(p []float64) string
}{
	{"constant", "T", func(p []float64) string { return "" }},
	{"exponential", "MEAN", func(p []float64) string { return positive(p[0]) }},
	{"bimodal", "SHORT,LONG,SHARE", func(p []float64) string {
		if p[2] < 0 || p[2] > 1 {
			return "the share of long ones is not within 0..1"
		}
		return ""
	}},
	{"pareto", "LEAST,GREATEST,SHAPE", func(p []float64) string {
		switch {
		case p[0] <= 0 || p[1] <= p[0]:
			return "the least must be above 0 and below the greatest"
		case p[2] <= 0 || p[2] == 1:
			return "the shape must be above 0, and not 1"
		}
		return ""
	}},
}

func positive(v float64) string {
	if v <= 0 {
		return "the mean must be above 0"
	}
	return ""
}

// LawForms lists what ParseLaw takes.
func LawForms() string {
	var forms []string
	for _, l := range laws {
		forms = append(forms, l.kind+":"+l.params)
	}
	return strings.Join(forms, ", ")
}

// ParseLaw reads a law:
//
//	constant:10ms
//	exponential:10ms             by its mean
//	bimodal:5ms,1s,0.01          short, long, and the share of long ones
//	pareto:2ms,1s,1.1            heavy-tailed: Pareto, bounded to least..greatest, with its shape
func ParseLaw(text string) (Law, error) {
	kind, list, _ := strings.Cut(text, ":")
	for _, l := range laws {
		if l.kind != kind {
			continue
		}
		words, names := strings.Split(list, ","), strings.Split(l.params, ",")
		if len(words) != len(names) {
			return Law{}, fmt.Errorf("law %q has not the form %s:%s", text, l.kind, l.params)
		}
		law := Law{kind: kind, text: text}
		for i, word := range words {
			v, err := lawParameter(names[i], word)
			if err != nil {
				return Law{}, fmt.Errorf("law %q: %s: %w", text, names[i], err)
			}
			law.params = append(law.params, v)
		}
		if fault := l.check(law.params); fault != "" {
			return Law{}, fmt.Errorf("law %q: %s", text, fault)
		}
		return law, nil
	}
	return Law{}, fmt.Errorf("there is no law %q; write one of %s", kind, LawForms())
}

func lawParameter(name, word string) (float64, error) {
	if name == "SHARE" || name == "SHAPE" {
		var v float64
		if _, err := fmt.Sscanf(word, "%g", &v); err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return 0, fmt.Errorf("%q is no number", word)
		}
		return v, nil
	}
	d, err := time.ParseDuration(word)
	if err != nil || d < 0 || d > time.Hour {
		return 0, fmt.Errorf("%q is no time such as 10ms, up to 1h", word)
	}
	return d.Seconds(), nil
}

// MustLaw is ParseLaw for a text that is known to be right.
func MustLaw(text string) Law {
	law, err := ParseLaw(text)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return law
}

// String is the form that ParseLaw reads.
func (l Law) String() string { return l.text }

// Quantile is the service time that a share u, 0 <= u < 1, of all service times is at most: the inverse of
// the distribution, by which a uniform random number becomes a service time.
func (l Law) Quantile(u float64) time.Duration {
	var seconds float64
	switch p := l.params; l.kind {
	case "constant":
		seconds = p[0]
	case "exponential":
		seconds = -p[0] * math.Log1p(-u)
	case "bimodal":
		seconds = p[0]
		if u >= 1-p[2] {
			seconds = p[1]
		}
	case "pareto":
		// 1 - F(x) of the unbounded one, scaled so that F(greatest) = 1.
		tail := 1 - u*(1-math.Pow(p[0]/p[1], p[2]))
		seconds = p[0] / math.Pow(tail, 1/p[2])
	}
	return time.Duration(seconds * float64(time.Second))
}

// Mean is the mean service time.
func (l Law) Mean() time.Duration {
	var seconds float64
	switch p := l.params; l.kind {
	case "constant", "exponential":
		seconds = p[0]
	case "bimodal":
		seconds = p[0]*(1-p[2]) + p[1]*p[2]
	case "pareto":
		least, greatest, a := p[0], p[1], p[2]
		seconds = math.Pow(least, a) / (1 - math.Pow(least/greatest, a)) * a / (a - 1) *
			(math.Pow(least, 1-a) - math.Pow(greatest, 1-a))
	}
	return time.Duration(seconds * float64(time.Second))
}
