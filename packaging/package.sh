#!/bin/sh
# Build the packages of one architecture into DIST: deb, rpm and a tarball. `make package` calls it for each.
# usage: package.sh ARCH DIST [FORMAT...]
# ARCH is amd64 or arm64, as in GOARCH; FORMAT is deb, rpm or tar, default all three.
set -eu
cd "$(dirname "$0")/.."
arch=$1 dist=$2
shift 2
formats=${*:-deb rpm tar}
go=${GO:-go}
version=${VERSION:-$(packaging/version.sh)}
# Everything in a package is as old as the last commit, so that two builds of it are equal byte for byte.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y VERSION)}
export SOURCE_DATE_EPOCH
umask 022

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$dist" "$stage/doc" "$stage/examples" "$stage/lib" "$stage/man5"
ldflags="-s -w -X github.com/273ebdf9/lb/internal/build.version=$version"
CGO_ENABLED=0 GOARCH=$arch $go build -trimpath -buildvcs=false -ldflags "$ldflags" -o "$stage/lb" ./cmd/lb
$go run -ldflags "-X github.com/273ebdf9/lb/internal/build.version=$version" ./packaging/generate "$stage"
gzip -9 -n "$stage"/man/*
mv "$stage"/man/*.5.gz "$stage/man5/"

# The library that has unchanged programs take handed-off connections. Without a compiler for arch it is left
# out.
case $arch in
amd64) compiler=x86_64-linux-gnu-gcc ;;
arm64) compiler=aarch64-linux-gnu-gcc ;;
*) compiler= ;;
esac
if [ "$arch" = "$($go env GOHOSTARCH)" ] && ! command -v "$compiler" >/dev/null 2>&1; then
	compiler=gcc
fi
if command -v "$compiler" >/dev/null 2>&1; then
	$compiler -O2 -Wall -Wextra -Werror -fPIC -shared -Wl,-s,-z,now -ffile-prefix-map="$PWD=." -o "$stage/lib/lbaccept.so" preload/lbaccept.c -ldl
else
	echo "package.sh: no $compiler: the packages for $arch have no lbaccept.so" >&2
fi

cp README.md CHANGELOG.md docs/*.md "$stage/doc/"
cp -R config.example.toml packaging/workers-as-users.conf examples/*/ "$stage/examples/"
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
# The form of https://github.com/goreleaser/chglog; nfpm makes the changelogs of deb and rpm from it.
cat >"$stage/changelog.yaml" <<END
- semver: $version
  date: $date
  packager: The lb authors <lb@example.org>
  changes:
    - note: See /usr/share/doc/lb/CHANGELOG.md.
END
# nfpm takes variables in some fields only.
sed -e "s|\${LB_STAGE}|$stage|; s|\${LB_ARCH}|$arch|; s|\${LB_VERSION}|$version|; s|\${LB_DATE}|$date|" packaging/nfpm.yaml >"$stage/nfpm.yaml"
for format in $formats; do
	[ "$format" = tar ] || ${NFPM:-nfpm} package --config "$stage/nfpm.yaml" --packager "$format" --target "$dist/"
done
case " $formats " in
*' tar '*) ;;
*) exit 0 ;;
esac

# The tarball has the same files, to be put where one likes.
name=lb-$version-linux-$arch
mkdir "$stage/$name"
mv "$stage/lb" "$stage/man" "$stage/man5" "$stage/completions" "$stage/doc" "$stage/examples" "$stage/lib" "$stage/$name/"
cp LICENSE packaging/lb.service packaging/lb.socket packaging/lb.sysusers packaging/lb.tmpfiles packaging/lb.toml packaging/grafana/lb.json \
	packaging/prometheus/lb.rules.yml "$stage/$name/"
find "$stage/$name" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner -cf - "$name" | gzip -9 -n >"$dist/$name.tar.gz"
