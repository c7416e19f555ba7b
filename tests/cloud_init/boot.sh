#!/bin/bash
# usage: unshare -mpfuni boot.sh LOWER SPACE AGENT COMMAND...
# A boot without a kernel: the command is process 1 of namespaces of its own, in a root that is
# LOWER with what SPACE/upper has on top, and the agent at /opt/agent. /run, /dev and the host's name are new each time.
set -euo pipefail
lower=$1 space=$2 agent=$3
shift 3
root=$space/root
mkdir -p "$space"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$space/upper,workdir=$space/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs run "$root/run"
mount -t tmpfs dev "$root/dev"
for node in null zero full random urandom; do
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
ln -s /proc/self/fd "$root/dev/fd"
touch "$root/dev/console"
mount --bind "$agent" "$root/opt/agent"
ip link set lo up
hostname localhost
enter=(chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=linux)
# An authority that the root trusts, or not.
if [ -d "$root/srv/tls" ]; then
    "${enter[@]}" sh -ec 'exec 2>/dev/null
        mkdir /run/tls; cd /run/tls
        key="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
        openssl req -x509 $key -subj /CN=judge -keyout ca.key -out ca.pem
        openssl req -x509 $key -subj /CN=server -addext subjectAltName=IP:127.0.0.1 \
            -addext basicConstraints=critical,CA:FALSE -CA ca.pem -CAkey ca.key -keyout host.key -out host.pem
        cat /etc/ssl/certs/ca-certificates.crt ca.pem >bundle'
    [ ! -e "$root/srv/tls/trusted" ] ||
        mount --bind "$root/run/tls/bundle" "$root/etc/ssl/certs/ca-certificates.crt"
fi
server=
if [ -d "$root/srv/www" ]; then
    "${enter[@]}" python3 /opt/server.py &
    server=$!
    until ss -Hltn sport = 8000 | grep -q .; do sleep 0.05; done
fi
"${enter[@]}" OWN="$server" "$@"
