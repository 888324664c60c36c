#!/bin/sh
# Become a systemd that manages nothing but the units of a test: the first process of new mount, pid, network, UTS, IPC and cgroup
# namespaces, in which this must be started. Its root is a copy-on-write view of the host's, with the files of STAGE in it.
# usage: systemd.sh STAGE SCRATCH
set -eu
stage=$1 scratch=$2
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mount --make-rprivate /
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
mount -t overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" overlay "$scratch/root"
cd "$scratch/root"
cp -R "$stage/." .
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys # systemd would set limits of the host
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
	# shellcheck disable=SC2086 # three words
	set -- $device
	mknod -m 666 "dev/$1" c "$2" "$3"
done
mkdir dev/pts dev/shm dev/mqueue
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s /proc/self/fd dev/fd
: >etc/fstab
if [ -e usr/lib/sysusers.d/lb.conf ]; then # else a package brings it
	chroot . systemd-sysusers /usr/lib/sysusers.d/lb.conf
fi
# Its own units and no generators: nothing of the host's is started.
exec env -i PATH="$PATH" container=lb-test SYSTEMD_UNIT_PATH=/etc/lb-test SYSTEMD_GENERATOR_PATH=/nonexistent \
	SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/nonexistent chroot . /lib/systemd/systemd --unit=basic.target --show-status=no
