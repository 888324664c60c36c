//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fetchText returns what a URL answers with status 200.
func fetchText(address string) (string, error) {
	resp, err := (&http.Client{Timeout: 5 * time.Second}).Get(address)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", address, resp.Status, text)
	}
	return string(text), err
}

// TestFigures_PrometheusTakesMetricsRulesAndDashboard has promtool check what packages carry, and a real
// Prometheus read a running lb and answer every query of the rules and of the dashboard.
func TestFigures_PrometheusTakesMetricsRulesAndDashboard(t *testing.T) {
	promtool := program(t, "promtool")
	const packaging = "../../packaging"
	rules, err := filepath.Abs(packaging + "/prometheus/lb.rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, patience, promtool, "check", "rules", "--lint-fatal", rules)
	mustRun(t, patience, promtool, "test", "rules", packaging+"/prometheus/lb.rules_test.yml")

	front, dir := freePort(t, "127.0.0.1"), tempDir(t)
	address, _ := startPageLB(t, fmt.Sprintf(`
[listeners.web]
bind = [%q]
pool = "app"
[pools.app]
queue_size = 5
[pools.app.workers]
count = 1
command = [%q]
[pools.other.health]
interval = "100ms"
[[pools.other.backends]]
name = "w1"
address = "unix:%s/nobody.sock"
[listeners.other]
bind = [%q]
pool = "other"
`, front, sampleWorker(t), dir, freePort(t, "127.0.0.1")))
	var metrics string
	eventually(t, patience, func() error {
		metrics, err = fetchText("http://" + address + "/metrics")
		if err == nil && (!strings.Contains(metrics, `lb_backend_health{pool="other",backend="w1",state="down"} 1`) ||
			!strings.Contains(metrics, `lb_workers_up{pool="app"} 1`)) {
			err = errors.New("lb does not know its backends yet")
		}
		return err
	})
	if r := run(t, patience, strings.NewReader(metrics), promtool, "check", "metrics"); r.code != 0 || r.stdout+r.stderr != "" {
		t.Errorf("promtool check metrics: got exit code %d: %s%s; want no complaint", r.code, r.stdout, r.stderr)
	}

	prometheus := freePort(t, "127.0.0.1")
	config := writeFile(t, dir, "prometheus.yml", fmt.Sprintf(`
global: {scrape_interval: 200ms, evaluation_interval: 200ms}
rule_files: [%q]
scrape_configs: [{job_name: lb, static_configs: [{targets: [%q]}]}]
`, rules, address), 0o644)
	startProcess(t, "prometheus", exec.Command(program(t, "prometheus"), "--config.file="+config, "--storage.tsdb.path="+dir+"/data",
		"--web.listen-address="+prometheus, "--log.level=warn"))
	query := func(expr string) (series int, err error) {
		var answer struct {
			Data struct{ Result []json.RawMessage }
		}
		text, err := fetchText("http://" + prometheus + "/api/v1/query?query=" + url.QueryEscape(expr))
		if err == nil {
			err = json.Unmarshal([]byte(text), &answer)
		}
		return len(answer.Data.Result), err
	}
	// An alert that is pending comes from a rule that was evaluated on lb's own series.
	eventually(t, patience, func() error {
		n, err := query(`ALERTS{alertname="LbNoBackendUp", pool="other"}`)
		if err == nil && n != 1 {
			err = fmt.Errorf("series of the alert LbNoBackendUp for the pool whose backend is down: got %d; want 1", n)
		}
		return err
	})
	for _, record := range []string{"lb:sessions:ratio", "lb:open_fds:ratio", `lb:pool_selectable:ratio{pool="app"}`} {
		eventually(t, patience, func() error { // its group is evaluated at another moment
			n, err := query(record)
			if err == nil && n != 1 {
				err = fmt.Errorf("series of %s: got %d; want 1", record, n)
			}
			return err
		})
	}
	if n, err := query(`ALERTS{pool="app"}`); n != 0 || err != nil {
		t.Errorf("alerts of the pool that is well: got %d, %v; want none", n, err)
	}

	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(readFile(t, packaging+"/grafana/lb.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	variables := strings.NewReplacer("$instance", ".*", "$pool", ".*", "$__rate_interval", "10s")
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			n, err := query(variables.Replace(target.Expr))
			if err != nil {
				t.Errorf("panel %s: %v", panel.Title, err)
			}
			// What only looks up gauges has something to show of every lb.
			if gauge := !strings.ContainsAny(target.Expr, "[>") && !strings.Contains(target.Expr, "configured"); gauge && n == 0 {
				t.Errorf("panel %s: %s: got no series; want some", panel.Title, target.Expr)
			}
		}
	}
}
