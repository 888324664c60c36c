//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

func TestPostgres_Pgbench(t *testing.T) {
	server := startPostgres(t)
	_, directPort, _ := strings.Cut(server.tcp, ":")
	direct := []string{"-h", server.dir, "-p", directPort, "-U", "postgres"}
	query := func(t *testing.T, sql string) string {
		t.Helper()
		args := append(direct, "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres")
		return strings.TrimSpace(mustRun(t, patience, program(t, "psql"), args...).stdout)
	}
	for kind, address := range map[string]string{"unix": server.unix, "tcp": server.tcp} {
		t.Run(kind, func(t *testing.T) {
			config := onePool(t, address)
			if kind == "unix" {
				config.Pools[0].Options = server.owner(t)
			}
			l := startLB(t, config)
			host, port, _ := strings.Cut(l.addr(), ":")
			through := []string{"-h", host, "-p", port, "-U", "postgres"}
			pgbench := func(t *testing.T, args ...string) string {
				t.Helper()
				r := mustRun(t, 3*patience, program(t, "pgbench"), append(append(through, args...), "postgres")...)
				if strings.Contains(r.stderr, "error") {
					t.Errorf("pgbench %q: got %q; want no error", args, r.stderr)
				}
				return r.stdout
			}
			pgbench(t, "-i", "-q", "-s", "1") // COPY of 100 000 rows
			if got := query(t, "select count(*) from pgbench_accounts"); got != "100000" {
				t.Errorf("rows after pgbench -i: got %s; want 100000", got)
			}
			for _, c := range []struct {
				name    string
				clients int
				each    int // transactions of a client
				args    []string
			}{
				{"plain", 8, 250, nil},
				{"prepared", 8, 250, []string{"-M", "prepared"}},
				{"a connection for each transaction", 4, 75, []string{"-C"}},
			} {
				t.Run(c.name, func(t *testing.T) {
					before := query(t, "select count(*) from pgbench_history")
					args := append([]string{"-n", "-c", strconv.Itoa(c.clients), "-t", strconv.Itoa(c.each)}, c.args...)
					out := pgbench(t, args...)
					all := c.clients * c.each
					for _, want := range []string{
						fmt.Sprintf("number of transactions actually processed: %d/%d", all, all),
						"number of failed transactions: 0 ",
					} {
						if !strings.Contains(out, want) {
							t.Errorf("pgbench %q: got %q; want it to say %q", args, out, want)
						}
					}
					rows := fmt.Sprintf("select count(*) - %s from pgbench_history", before)
					if got := query(t, rows); got != strconv.Itoa(all) {
						t.Errorf("transactions that arrived: got %s; want %d", got, all)
					}
				})
			}
			t.Run("a large result", func(t *testing.T) {
				args := []string{"-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c",
					"copy (select i, md5(i::text) from generate_series(1, 500000) i) to stdout", "postgres"}
				want := mustRun(t, patience, program(t, "psql"), append(direct, args...)...).stdout
				got := mustRun(t, patience, program(t, "psql"), append(through, args...)...).stdout
				if got != want {
					t.Errorf("rows through lb: got %d bytes unlike those without; want the same %d", len(got), len(want))
				}
			})
		})
	}
}
