#!/bin/sh
# Starts lb with the example config, in the foreground; lb starts the sample app processes itself.
# usage: examples/run.sh LB CONFIG
set -eu
lb=$1 config=$2
dir=/tmp/lb-example
mkdir -p "$dir"
chmod 700 "$dir"
"$lb" check -f "$config"
cat <<END

lb starts four sample processes and fronts them. Try, in another terminal:

  curl http://127.0.0.1:8080/                     which process answers? again, and again
  export LB_SOCKET=$dir/admin.sock    for the commands below
  $lb status                                  what lb sees
  kill -9 \$(pgrep -of bin/sample)                 it is replaced, and no other client notices
  kill -STOP \$(pgrep -of bin/sample)              it hangs: offline in three seconds, replaced ten later
  $lb restart app                             every process anew, and no connection lost
  $lb scale app +1                            one more
  curl http://127.0.0.1:9901/metrics              the same for Prometheus

Ctrl-C ends it all. The config is $config; copy it and start your own with: $lb run -f FILE

END
exec "$lb" run -f "$config"
