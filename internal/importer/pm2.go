package importer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ReadEcosystem returns the JSON of pm2's ecosystem file. A .js or .cjs file is a program: it is run by node,
// which must be there, in the file's directory.
func ReadEcosystem(ctx context.Context, file string) ([]byte, error) {
	if ext := filepath.Ext(file); ext != ".js" && ext != ".cjs" {
		return os.ReadFile(file)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "node", "-e", "process.stdout.write(JSON.stringify(require(process.argv[1])))", path)
	cmd.Dir = filepath.Dir(path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return nil, errors.New("it is a program, and there is no node to run it: write it as JSON, {\"apps\": [...]}")
	case err != nil:
		return nil, fmt.Errorf("node cannot run it: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// Ecosystem translates pm2's ecosystem file (https://pm2.keymetrics.io/docs/usage/application-declaration/),
// as JSON. dir is the directory that it stands in, to which its paths are relative.
func Ecosystem(file, dir string, text []byte) (*Draft, error) {
	apps, err := appsOf(text)
	if err != nil {
		return nil, err
	}
	d := &Draft{source: file}
	for i, app := range apps {
		newPM2App(d, dir, app, i).translate()
	}
	return d, nil
}

// appsOf returns the apps of a file: pm2 takes {"apps": [...]}, a list, and a single app.
func appsOf(text []byte) ([]map[string]any, error) {
	var list []map[string]any
	if json.Unmarshal(text, &list) != nil {
		var one map[string]any
		if err := json.Unmarshal(text, &one); err != nil {
			return nil, fmt.Errorf("it is not JSON: %w", err)
		}
		if one["apps"] != nil {
			out, _ := json.Marshal(one["apps"]) // it was JSON
			if err := json.Unmarshal(out, &list); err != nil {
				return nil, errors.New("its apps are no list of apps")
			}
		} else if one["script"] != nil {
			list = append(list, one)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("it has no apps")
	}
	return list, nil
}

type pm2App struct {
	d    *Draft
	dir  string
	app  map[string]any
	l    *listener
	p    *pool
	port int
}

func newPM2App(d *Draft, dir string, app map[string]any, i int) *pm2App {
	of, _ := app["name"].(string)
	if of == "" {
		of = strings.TrimSuffix(filepath.Base(text(app["script"])), filepath.Ext(text(app["script"])))
	}
	a := &pm2App{d: d, dir: dir, app: app, l: d.listener(of), port: 8080 + i}
	a.p = d.pool(a.l.name)
	return a
}

// text is a value as a string: pm2 takes strings and numbers for each other.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

// words is a value as a list of words: pm2 takes a string for it, too.
func words(v any) []string {
	list, ok := v.([]any)
	if !ok {
		return strings.Fields(text(v))
	}
	var out []string
	for _, x := range list {
		out = append(out, text(x))
	}
	return out
}

func (a *pm2App) translate() {
	w := &a.p.workers
	node := a.command()
	if node {
		a.p.set("handoff", "node")
	}
	a.p.set("when_all_down", "queue")
	keys := slices.Sorted(maps.Keys(a.app))
	for _, key := range keys {
		a.key(key, a.app[key], w)
	}
	a.environment(node)
	a.l.bind = []string{fmt.Sprintf("127.0.0.1:%d", a.port)}
	a.l.set("pool", a.p.name)
}

// command sets the workers' command, and reports whether lb can hand connections to it as Node's cluster
// module does.
func (a *pm2App) command() (node bool) {
	script, interpreter := text(a.app["script"]), text(a.app["interpreter"])
	if interpreter == "" {
		interpreter = text(a.app["exec_interpreter"])
	}
	if interpreter == "" && slices.Contains([]string{"npm", "npx", "yarn", "pnpm", "bun", "deno"}, script) {
		interpreter = "none"
	}
	if interpreter == "" {
		switch filepath.Ext(script) {
		case ".py":
			interpreter = "python3"
		case ".rb":
			interpreter = "ruby"
		case ".sh":
			interpreter = "sh"
		case ".php":
			interpreter = "php"
		case ".pl":
			interpreter = "perl"
		case ".js", ".cjs", ".mjs", "":
			interpreter = "node"
		}
	}
	var command []string
	if interpreter != "none" && interpreter != "" {
		command = append(command, interpreter)
		for _, key := range []string{"node_args", "interpreter_args"} {
			command = append(command, words(a.app[key])...)
		}
	}
	command = append(command, script)
	command = append(command, words(a.app["args"])...)
	a.p.workers.set("command", command)
	return interpreter == "node"
}

func (a *pm2App) key(key string, value any, w *table) {
	milliseconds := func() (time.Duration, bool) {
		if s, ok := value.(string); ok {
			if d, err := time.ParseDuration(s); err == nil {
				return d, true
			}
		}
		n, err := strconv.ParseInt(text(value), 10, 64)
		return time.Duration(n) * time.Millisecond, err == nil
	}
	note := func(reason string) { w.note(0, key+": "+brief(value), reason) }
	switch key {
	case "name", "script", "args", "interpreter", "exec_interpreter", "node_args", "interpreter_args", "exec_mode", "env", "autorestart", "merge_logs", "vizion",
		"time", "pid_file", "namespace", "instance_var", "source_map_support", "combine_logs", "log_type", "automation", "pmx", "port", "PORT":
		if key == "autorestart" && value == false {
			note("lb starts a worker again whenever it ends")
		}
	case "instances":
		n, err := strconv.Atoi(text(value))
		switch {
		case text(value) == "max" || text(value) == "0":
		case err == nil && n > 0:
			w.set("count", n)
		default:
			note("lb has as many as there are CPUs, or count = N")
		}
	case "cwd":
		dir := text(value)
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(a.dir, dir)
		}
		w.set("dir", dir)
	case "max_memory_restart":
		if size := memory(text(value)); size != "" {
			a.p.recycle.set("memory", size)
		} else {
			note("write it as recycle.memory = \"300MiB\"")
		}
	case "kill_timeout":
		if d, ok := milliseconds(); ok {
			w.set("kill_timeout", duration(d))
		}
	case "listen_timeout":
		if d, ok := milliseconds(); ok {
			w.set("start_timeout", duration(d))
		}
	case "wait_ready":
		if value == true {
			note("with handoff = \"node\" a worker is ready when it listens; process.send('ready') is not needed, and does no harm")
		}
	case "uid", "user":
		w.set("user", text(value))
	case "gid":
		w.set("group", text(value))
	case "log_file", "out_file", "output", "error_file", "error", "out", "log":
		a.logFile(value, w, note)
	case "exp_backoff_restart_delay", "restart_delay", "min_uptime", "max_restarts":
		note("lb backs off by itself from a worker that keeps ending, up to 30 s, and never gives up")
	case "cron_restart":
		note("lb has no clock for it: lb restart " + a.p.name + " from cron, or recycle.age")
	case "watch", "ignore_watch", "watch_options", "watch_delay":
		note("lb does not watch files: lb restart " + a.p.name)
	case "shutdown_with_message":
		if value == true {
			note("lb sends stop_signal (SIGTERM); with handoff = \"node\" Node also hears disconnect")
		}
	case "log_date_format":
		note("each line of a log has its time")
	default:
		if strings.HasPrefix(key, "env_") {
			note("pm2 start --env " + strings.TrimPrefix(key, "env_") + " takes it: write it into env, or another file")
			return
		}
		note("no counterpart in lb")
	}
}

// logFile sets the workers' log. lb writes what a worker says to one file.
func (a *pm2App) logFile(value any, w *table, note func(string)) {
	file := text(value)
	switch {
	case file == "" || file == "/dev/null" || file == "NULL":
		return
	case !filepath.IsAbs(file):
		file = filepath.Join(a.dir, file)
	}
	for _, s := range w.settings {
		if s.key == "log" {
			if s.value != Value(file) {
				note("lb writes both outputs of a worker to one file")
			}
			return
		}
	}
	w.set("log", file)
}

// environment sets env, with the app's port: lb listens at it in its place.
func (a *pm2App) environment(node bool) {
	env, _ := a.app["env"].(map[string]any)
	var settings []setting
	for _, key := range slices.Sorted(maps.Keys(env)) {
		value := text(env[key])
		if key == "PORT" {
			if n, err := strconv.Atoi(value); err == nil {
				a.port = n
			}
			if !node {
				continue
			}
		}
		settings = append(settings, setting{Value(key), Value(value)})
	}
	if !node {
		settings = append(settings, setting{"PORT", Value("{port}")})
	}
	if len(settings) > 0 {
		a.p.workers.set("env", settings)
	}
	if a.port == 0 {
		a.port = 8080
	}
	if _, ok := env["PORT"]; !ok {
		a.l.note(0, "port", fmt.Sprintf("the file does not say where clients connect to: lb takes connections at port %d; write the right one", a.port))
	}
}

// memory is a size of pm2 ("300M", "1G", bytes) as lb writes it; empty is none.
func memory(s string) string {
	s = strings.TrimSuffix(strings.ToUpper(strings.TrimSpace(s)), "B")
	number, unit := strings.TrimRight(s, "KMG"), strings.TrimLeft(s, "0123456789")
	n, err := strconv.Atoi(number)
	switch {
	case err != nil || n <= 0:
		return ""
	case unit == "":
		return fmt.Sprintf("%dKiB", max(1, n/1024))
	case unit == "K" || unit == "M" || unit == "G":
		return fmt.Sprintf("%d%siB", n, unit)
	}
	return ""
}

func brief(v any) string {
	out, _ := json.Marshal(v)
	if len(out) > 60 {
		return string(out[:57]) + "..."
	}
	return string(out)
}
