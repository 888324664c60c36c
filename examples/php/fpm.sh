#!/bin/sh
# php-fpm as a worker of lb. It takes the place where it listens from its configuration only, so this writes
# one, which php-fpm reads once, and becomes it.
# usage: fpm.sh SOCKET
set -eu
fpm=$(command -v php-fpm || ls /usr/sbin/php-fpm[0-9]* 2>/dev/null | tail -n 1) # Debian names it after its version
exec "$fpm" --nodaemonize --force-stderr --fpm-config /dev/fd/9 9<<END
[global]
error_log = /dev/stderr
log_level = warning
[www]
listen = $1
pm = static
pm.max_children = ${FPM_CHILDREN:-4}
clear_env = no
catch_workers_output = yes
END
