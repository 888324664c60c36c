#!/bin/sh
# After the files are there. deb: configure [OLD-VERSION]; rpm: how many versions are installed.
set -e

case "$1" in
configure | [0-9]*) ;;
*) exit 0 ;; # deb: abort-upgrade and the like
esac

if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers /usr/lib/sysusers.d/lb.conf
elif ! getent passwd lb >/dev/null; then
	groupadd --system lb
	useradd --system --gid lb --home-dir /var/lib/lb --no-create-home --shell /usr/sbin/nologin lb
fi
if command -v systemd-tmpfiles >/dev/null 2>&1; then
	systemd-tmpfiles --create /usr/lib/tmpfiles.d/lb.conf || true # a container without some mounts
else
	install -d -m 0700 -o lb -g lb /var/lib/lb
	install -d -m 0750 -o lb -g lb /var/log/lb
fi
# It may name a token's file and workers' environments; lb reads it as the user lb.
chown root:lb /etc/lb/lb.toml
chmod 0640 /etc/lb/lb.toml

[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload || true
if systemctl --quiet is-active lb.service; then
	# Replaces the binary of the running lb in place; its connections and workers go on.
	if /usr/bin/lb upgrade; then
		exit 0
	fi
	echo "lb: the old version still runs, with all its connections. Mend what is said above and run 'lb upgrade'," >&2
	echo "lb: or 'systemctl restart lb', which ends the connections." >&2
else
	echo "lb: edit /etc/lb/lb.toml, then 'systemctl enable --now lb'."
fi
