#!/bin/sh
# Become lb as the first process of a container: new mount, pid, network, UTS and IPC namespaces, in which this must be started, and a
# root with the files of STAGE and what a container's run-time mounts, as a user that may do nothing.
# usage: container.sh STAGE SCRATCH
set -eu
stage=$1 root=$2
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

ip link set lo up
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
cp -R "$stage/." .
mkdir proc dev run run/lb
mount -t proc proc proc
mount -t tmpfs -o mode=755 tmpfs dev
for device in 'null 1 3' 'zero 1 5' 'random 1 8' 'urandom 1 9'; do
	# shellcheck disable=SC2086 # three words
	set -- $device
	mknod -m 666 "dev/$1" c "$2" "$3"
done
chown 65532:65532 run/lb
exec env -i PATH="$PATH" chroot --userspec=65532:65532 . /usr/bin/lb run -f /etc/lb/lb.toml
