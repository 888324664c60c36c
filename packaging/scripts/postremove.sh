#!/bin/sh
# After the files have gone. deb: remove, purge and others; rpm: how many versions stay.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || true
fi
case "$1" in
purge)
	rm -rf /var/lib/lb /var/log/lb
	rmdir --ignore-fail-on-non-empty /etc/lb 2>/dev/null || true
	;;
esac
# The user and the group stay: files that they own may be left.
