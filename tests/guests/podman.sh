#!/bin/bash
# usage: podman.sh FOLDER, in namespaces of its own for mounts and the network
# Makes a Debian that is unpacked in FOLDER, and has podman, this process's root, as a machine of its
# own: with the kernel's file systems, nothing of an earlier run, and a loopback. Says when that is
# done, and stays until it is killed. (A chroot would keep user namespaces from podman.)
set -euo pipefail
root=$1
mount --bind "$root" "$root"
mount --make-rprivate "$root"
for place in proc sys dev; do mount --rbind "/$place" "$root/$place"; done
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/var/lib/containers" "$root/old"
mount -t tmpfs tmpfs "$root/var/lib/containers"
ip link set lo up
cd "$root"
pivot_root . old
umount -l /old
echo ready
exec sleep infinity
