package bench

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
)

// sampleReport has three rounds, one of which is slow for everybody, and one with an invalid rival.
func sampleReport() *Report {
	r := &Report{
		Rounds: 3, Duration: time.Second,
		Contenders: []ContenderInfo{{"lb", KindLB}, {"new", KindLB}, {"h", KindRival}, {"n", KindRival}, {"direct", KindReference}, {"handed", KindHandoff}},
		Cases:      []Case{{Name: "k", Title: "small", Conns: 64, Goal: 0.85, HandoffGoal: 0.45, HandoffCPU: 0.1, HandoffRate: 0.97}, {Name: "i", Title: "idle", Conns: 100, Idle: true}},
	}
	cpu := map[string][]float64{"lb": {8, 80, 9}, "new": {9, 90, 10}, "h": {10, 120, 5}, "n": {20, 100, 10}, "direct": {0, 0, 0}, "handed": {1, 10, 0.5}}
	for _, contender := range r.Contenders {
		for round, v := range cpu[contender.Name] {
			s := Sample{Round: round, Case: "k", Contender: contender.Name, Kind: contender.Kind, CPU: v, Requests: 100, Rate: 1000, MachineCPU: 30}
			if contender.Name == "h" && round == 2 {
				s.Invalid = "3 read errors"
			}
			r.Samples = append(r.Samples, s)
			if contender.Kind != KindReference {
				r.Samples = append(r.Samples, Sample{Round: round, Case: "i", Contender: contender.Name, Kind: contender.Kind, IdleMemory: v * 50, IdleFDs: 2.001})
			}
		}
	}
	return r
}

func TestReport_RatioIsTakenPerRound(t *testing.T) {
	r := sampleReport()
	kase := r.Cases[0]
	// Against h, n and n again: h's 5 in the third round does not count.
	got := r.Ratio("k", "lb", kase.Cost)
	if want := (Summary{0.8, 0.8, 0.9}); got != want {
		t.Errorf("got %v; want %v", got, want)
	}
	if got := r.Ratio("k", "h", kase.Cost); got != (Summary{1.1, 1, 1.2}) {
		t.Errorf("got %v for a rival; want its ratio to the best in valid rounds", got)
	}
	if got := r.Invalid(); got != 1 {
		t.Errorf("got %d invalid samples; want 1", got)
	}
}

func TestReport_NoRivals(t *testing.T) {
	r := sampleReport()
	r.Contenders = r.Contenders[:2]
	if got := r.Ratio("k", "lb", r.Cases[0].Cost); !math.IsNaN(got.Median) {
		t.Errorf("got %v; want NaN", got)
	}
	if v := r.Verdicts()[0]; v.Met() || v.String() != "not measured" {
		t.Errorf("got %v; want not measured", v)
	}
}

func TestReport_Verdicts(t *testing.T) {
	var got []string
	for _, v := range sampleReport().Verdicts() {
		got = append(got, v.Case+" "+v.Contender+" "+v.String())
	}
	want := "k lb met, k new missed, k handed missed, k handed met, k handed met, i lb met, i lb met, i new met, i new met, i handed met, i handed met"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %v; want %v", got, want)
	}
	r := sampleReport()
	for i := range r.Samples {
		r.Samples[i].IdleFDs, r.Samples[i].IdleMemory = 2.01, 513
	}
	for _, v := range r.Verdicts()[5:] {
		if v.Met() {
			t.Errorf("got %+v met; want missed", v)
		}
	}
}

func TestReport_Text(t *testing.T) {
	var b bytes.Buffer
	if err := sampleReport().WriteText(&b); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{
		"k: small, 64 connections\n",
		"  lb               1000    0.00    0.00     9.0        8.0..80.0    0%      0.00          0.0        30.0      0%     0.80       0.80..0.90       1.00\n",
		"  direct           1000    0.00    0.00       -                -     -         -          0.0        30.0      0%        -                -       1.00\n",
		"INVALID in 1 of 3 rounds: 3 read errors\n",
		"  lb                   450        400..4000         2.00         0     0.80       0.80..1.80\n",
		"relative to lb in the same round\n",
		"  k     new    1.125     1.111..1.125\n",
		"<= 0.85  0.80       0.80..0.90      met\n",
		"<= 0.85  0.90       0.90..1.00   missed\n",
		">= 0.97  1.00       1.00..1.00      met\n",
		"bytes of user memory per session          <= 512   450        400..4000      met\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the text", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestReport_JSONKeepsEverySample(t *testing.T) {
	var b bytes.Buffer
	r := sampleReport()
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if len(back.Samples) != len(r.Samples) || back.Samples[3] != r.Samples[3] || back.Contenders[2] != r.Contenders[2] {
		t.Errorf("got %+v; want %+v", back, r)
	}
}

func TestParseCPUModel(t *testing.T) {
	if got := parseCPUModel("processor\t: 0\nmodel name\t: Fast CPU: 2\nmodel name\t: other\n"); got != "Fast CPU: 2" {
		t.Errorf("got %q", got)
	}
}
