package admin

import (
	"fmt"
	"strings"
)

//go:generate go test . -run TestDocument -update

// metricsDocument returns the text of docs/metrics.md.
func metricsDocument() string {
	var b strings.Builder
	b.WriteString(`# Metrics

<!-- Generated from metricFamilies in admin/families.go by ` + "`go generate ./admin`" + `. Do not edit. -->

` + "`GET /metrics`" + ` on ` + "`admin.http`" + ` has everything in the text format of Prometheus. Times are in seconds, sizes in bytes; a counter ends in
` + "`_total`" + `. Names and labels stay; new ones come. The metrics of the process and of Go (` + "`process_*`, `go_*`" + `) are not listed here.

The label ` + "`backend`" + ` is a backend's name, or for the workers of a pool the number of the slot: a deploy replaces the worker, and its series
goes on. ` + "`slot`" + ` is the same number. A series that would say nothing is absent, where its description says so.

` + "`packaging/grafana/lb.json`" + ` is a dashboard for Grafana, and ` + "`packaging/prometheus/lb.rules.yml`" + ` has recording rules and alerts for
Prometheus. The packages put both into ` + "`/usr/share/lb`" + `.

| metric | type | labels | what it is | what to do with it |
|---|---|---|---|---|
`)
	for _, f := range metricFamilies {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", f.name, f.typ, f.labels, strings.ReplaceAll(f.help, "|", `\|`), f.use)
	}
	return b.String()
}
