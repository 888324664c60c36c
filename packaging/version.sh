#!/bin/sh
# Print the version of this tree: that of a tag vX.Y.Z on the commit, else the file VERSION with what the
# commit is, else (where there is no git, as in a source tarball) the file VERSION alone. It is a semantic
# version (https://semver.org).
set -eu
cd "$(dirname "$0")/.."
next=$(cat VERSION)
if ! commit=$(git rev-parse --short=7 HEAD 2>/dev/null); then
	echo "$next"
	exit
fi
changes=
[ -z "$(git status --porcelain --untracked-files=no)" ] || changes=.dirty
if [ -z "$changes" ] && tag=$(git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null); then
	echo "${tag#v}"
	exit
fi
# The count has packages of later commits count as newer.
echo "$next-dev.$(git rev-list --count HEAD)+$commit$changes"
