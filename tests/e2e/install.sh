#!/bin/sh
# Install the programs that the end-to-end tests drive, on Debian 12 or one of its relatives: only those that are
# missing. Run it as root, or as a user who may use sudo.
#
# The tests start every program themselves. So no service is started here, and no PostgreSQL cluster made.
set -eu

# found COMMAND: is it there, also where the PATH of a plain user does not lead?
found() {
	command -v "$1" >/dev/null 2>&1 && return
	for folder in /usr/sbin /sbin /usr/local/sbin /usr/lib/postgresql/*/bin; do
		[ -x "$folder/$1" ] && return
	done
	return 1
}

packages=
# need COMMAND PACKAGE
need() {
	found "$1" && return
	case " $packages " in
	*" $2 "*) ;;
	*) packages="$packages $2" ;;
	esac
}

need curl curl
need wrk wrk
need nginx nginx
need chromium chromium
need redis-server redis-server
need etcd etcd-server
need etcdctl etcd-client
need redis-benchmark redis-tools
need redis-cli redis-tools
need postgres postgresql
need initdb postgresql
need pgbench postgresql
need psql postgresql-client
need sshd openssh-server
need ssh openssh-client
need ssh-keygen openssh-client
need rsync rsync
need openssl openssl
need node nodejs
need npm npm
need gunicorn gunicorn
need uvicorn uvicorn
need puma puma
ls /usr/sbin/php-fpm* >/dev/null 2>&1 || need php-fpm php-fpm # Debian names it after its version
need cc gcc
need haproxy haproxy
need socat socat
need strace strace
need promtool prometheus
need prometheus prometheus
need tmux tmux
need python3 python3

if [ -z "$packages" ]; then
	echo "everything is there"
	exec "${0%/*}/npm.sh"
fi

as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif command -v sudo >/dev/null 2>&1; then
		sudo "$@"
	else
		echo "install.sh: cannot install$packages: run it as root, or install sudo" >&2
		exit 1
	fi
}

# What invoke-rc.d and deb-systemd-invoke ask before they start a service; 101 is no (policy-rc.d of Debian Policy).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'as_root rm -f "$policy"' EXIT
	trap 'exit 1' HUP INT TERM
	printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
	as_root chmod 755 "$policy"
fi
# The package would make a cluster at once (man 5 createcluster.conf is part of postgresql-common).
cluster=/etc/postgresql-common/createcluster.conf
if [ ! -e "$cluster" ]; then
	as_root mkdir -p "${cluster%/*}"
	echo 'create_main_cluster = false' | as_root tee "$cluster" >/dev/null
fi

as_root env DEBIAN_FRONTEND=noninteractive apt-get update
# confold: the file that was just written is not asked about.
# shellcheck disable=SC2086 # a list of words
as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
	-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold $packages

missing=
for command in curl wrk nginx redis-server redis-benchmark redis-cli postgres initdb pgbench psql sshd ssh ssh-keygen \
	rsync openssl node npm gunicorn uvicorn puma cc promtool; do
	found "$command" || missing="$missing $command"
done
if [ -n "$missing" ]; then
	echo "install.sh: still missing:$missing" >&2
	exit 1
fi
echo "installed:$packages"
exec "${0%/*}/npm.sh"
