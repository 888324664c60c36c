#!/bin/sh
# Starts four sample app processes on Unix sockets and lb in front of them, and ends them all with it.
# usage: examples/run.sh LB HELLO CONFIG
set -eu
lb=$1 hello=$2 config=$3
dir=/tmp/lb-example
mkdir -p "$dir"
chmod 700 "$dir"
pids=
end() {
	trap '' INT TERM
	# shellcheck disable=SC2086
	[ -z "$pids" ] || kill $pids 2>/dev/null || true
	wait
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$lb" check -f "$config"
for name in w1 w2 w3 w4; do
	"$hello" "$name" "$dir/$name.sock" &
	pids="$pids $!"
done
"$lb" run -f "$config" &
front=$!
pids="$pids $front"
until curl -s -o /dev/null --max-time 1 http://127.0.0.1:8080/ 2>/dev/null; do
	kill -0 "$front" 2>/dev/null || { wait "$front"; exit 1; }
	sleep 0.1
done
cat <<END

lb fronts four sample processes. Try, in another terminal:

  curl http://127.0.0.1:8080/                     which process answers? again, and again
  $lb status -s $dir/admin.sock       what lb sees
  curl http://127.0.0.1:9901/metrics              the same for Prometheus
  kill -9 \$(pgrep -of 'hello w1 ')                no client notices; see status
  curl http://127.0.0.1:8080/slow?ms=5000         a slow request: the others get the rest

Ctrl-C ends it all. The config is $config; copy it and start your own with: $lb run -f FILE

END
wait "$front"
