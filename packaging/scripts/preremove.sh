#!/bin/sh
# Before the files go. deb: remove, or upgrade NEW-VERSION; rpm: how many versions stay.
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;; # an upgrade leaves the running lb alone
esac
[ -d /run/systemd/system ] || exit 0
systemctl --quiet disable --now lb.socket lb.service || true
