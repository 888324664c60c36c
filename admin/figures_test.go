package admin

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// figures are the queries of the dashboard and of the rules for Prometheus that lb's packages carry, by where
// they stand.
func figures(t *testing.T) map[string]string {
	t.Helper()
	queries := map[string]string{}
	text, err := os.ReadFile("../packaging/grafana/lb.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, RefID string }
		}
		Annotations struct{ List []struct{ Name, Expr string } }
		Templating  struct {
			List []struct {
				Name, Type string
				Query      any
			}
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatalf("lb.json: %v", err)
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			queries["lb.json: "+panel.Title+", "+target.RefID] = target.Expr
		}
	}
	for _, a := range dashboard.Annotations.List {
		queries["lb.json: annotation "+a.Name] = a.Expr
	}
	for _, v := range dashboard.Templating.List {
		if q, ok := v.Query.(map[string]any); ok {
			queries["lb.json: variable "+v.Name], _ = q["query"].(string)
		}
	}
	if len(queries) < 30 {
		t.Fatalf("queries of lb.json: got %d; want at least 30", len(queries))
	}
	text, err = os.ReadFile("../packaging/prometheus/lb.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	// A rule is an entry of a list; its expression is what stands behind expr, on lines that are further in.
	for _, rule := range regexp.MustCompile(`(?m)^      - (?:alert|record): `).Split(string(text), -1)[1:] {
		name, rest, _ := strings.Cut(rule, "\n")
		_, expr, found := strings.Cut(rest, "expr: ")
		if !found {
			t.Fatalf("lb.rules.yml: %s: has no expr", name)
		}
		expr = regexp.MustCompile(`\n        \w[\s\S]*`).ReplaceAllString(expr, "")
		queries["lb.rules.yml: "+name] = expr
	}
	return queries
}

// A figure that names a metric or a label that lb has not is empty for ever, and says so to nobody.
func TestFigures_NameMetricsAndLabelsThatExist(t *testing.T) {
	scraped := []string{"job", "instance"} // the labels that Prometheus adds
	known := map[string][]string{"up": scraped}
	for _, f := range metricFamilies {
		all := append(strings.FieldsFunc(f.labels, func(r rune) bool { return r == ',' || r == ' ' }), scraped...)
		if f.typ != histogram {
			known[f.name] = all
			continue
		}
		known[f.name+"_bucket"] = append([]string{"le"}, all...)
		known[f.name+"_sum"], known[f.name+"_count"] = all, all
	}
	queries := figures(t)
	for at := range queries {
		if name, ok := strings.CutPrefix(at, "lb.rules.yml: "); ok && strings.HasPrefix(name, "lb:") {
			known[name] = append([]string{"pool", "listener", "slot"}, scraped...)
		}
	}
	selector := regexp.MustCompile(`\b((?:lb|process)[_:][a-z0-9_:]+|up)\b(?:\{([^}]*)\})?`)
	matcher := regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"[^"]*"`)
	grouping := regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	used := map[string]bool{}
	for at, query := range queries {
		grouped := map[string]bool{}
		for _, group := range grouping.FindAllStringSubmatch(query, -1) {
			for label := range strings.FieldsFuncSeq(group[1], func(r rune) bool { return r == ',' || r == ' ' }) {
				grouped[label] = true
			}
		}
		bare := grouping.ReplaceAllString(query, "")
		found := selector.FindAllStringSubmatch(bare, -1)
		if len(found) == 0 {
			t.Errorf("%s: names no metric: %s", at, query)
		}
		for _, f := range found {
			labels, ok := known[f[1]]
			if !ok {
				t.Errorf("%s: lb has no %s", at, f[1])
				continue
			}
			used[f[1]] = true
			for _, m := range matcher.FindAllStringSubmatch(f[2], -1) {
				if !slices.Contains(labels, m[1]) {
					t.Errorf("%s: %s has no label %s", at, f[1], m[1])
				}
			}
			for label := range grouped {
				if !slices.Contains(labels, label) && !strings.Contains(query, "without") {
					t.Errorf("%s: groups by %s, which %s has not", at, label, f[1])
				}
			}
		}
	}
	if len(used) < 40 {
		t.Errorf("metrics in figures: got %d; want at least 40, or the queries are not understood", len(used))
	}
}

// An alert without a test is one that may never fire.
func TestFigures_EveryAlertHasATest(t *testing.T) {
	tests, err := os.ReadFile("../packaging/prometheus/lb.rules_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile("../packaging/prometheus/lb.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := regexp.MustCompile(`(?m)- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1)
	if len(alerts) < 20 {
		t.Fatalf("alerts: got %d; want at least 20", len(alerts))
	}
	for _, alert := range alerts {
		fires := regexp.MustCompile(`alertname: ` + alert[1] + `\n.*\n\s+exp_alerts:\n`)
		if !fires.Match(tests) {
			t.Errorf("%s: lb.rules_test.yml does not show it firing", alert[1])
		}
	}
}
