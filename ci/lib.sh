# Sourced by every script of ci/ and images/: where things lie, and how a step reports itself.
# shellcheck shell=bash
set -euo pipefail

# The checkout, and what is kept outside it between checkouts, by content.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/peapod
mkdir -p "$cache"

die() { # STATUS MESSAGE
    echo "$(basename "$0"): $2" >&2
    exit "$1"
}

# Runs a command and says in one line how long it took; its output is shown only if it fails.
step() { # NAME COMMAND...
    local name=$1 start=$EPOCHREALTIME log status=0
    shift
    log=$(mktemp)
    # In a subshell of its own with -e, which a command in a condition would lose.
    set +e
    (set -e; "$@") >"$log" 2>&1
    status=$?
    set -e
    if [ "$status" -ne 0 ]; then
        cat "$log" >&2
        rm -f "$log"
        echo "==> $name: failed with status $status" >&2
        return "$status"
    fi
    rm -f "$log"
    took "$name" "$start"
}

took() { # NAME START
    printf '==> %s: %.1f s\n' "$1" "$(bc_sub "$EPOCHREALTIME" "$2")" >&2
}

# Seconds between two readings of EPOCHREALTIME, which has six digits after its point.
bc_sub() {
    local us=$((${1/[.,]/} - ${2/[.,]/}))
    printf '%d.%06d' $((us / 1000000)) $((us % 1000000))
}

# The package that a Debian metapackage stands for today, or nothing where apt has none.
real_package() { # METAPACKAGE
    apt-cache depends --important "$1" 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'
}

# The file name, version included, that apt would download for a package.
deb_name() { # PACKAGE
    apt-get download --print-uris "$1" | awk '{ print $2; exit }'
}

# Unpacks a package, without installing it, into a folder that appears only when it is whole.
unpack_deb() { # PACKAGE FOLDER
    local tmp="$2.new.$$"
    mkdir -p "$tmp/deb" "$tmp/root"
    (cd "$tmp/deb" && apt-get -qq -o APT::Sandbox::User=root download "$1")
    dpkg -x "$tmp"/deb/*.deb "$tmp/root"
    rm -rf "$tmp/deb"
    local release
    release=$(ls "$tmp/root/lib/modules")
    # The package's own installation script would have done this.
    /sbin/depmod -b "$tmp/root" "$release"
    # Another run may have been first; both made the same.
    mv -T "$tmp/root" "$2" 2>/dev/null || [ -d "$2" ]
    rm -rf "$tmp"
}

# What a kernel module needs loaded first, in order, ending with itself; paths below the
# release's folder. Nothing for what is built in.
module_closure() { # MODULES_FOLDER NAME...
    local dir=$1 name line path deps i
    shift
    for name; do
        # File names have - or _ where the module's name has either.
        line=$(grep -E "/${name//[-_]/[-_]}\.ko(\.xz)?:" "$dir/modules.dep") || {
            grep -qE "/${name//[-_]/[-_]}\.ko" "$dir/modules.builtin" && continue
            die 1 "the kernel has no module $name"
        }
        path=${line%%:*}
        read -ra deps <<<"${line#*:}"
        # modules.dep names the last to be loaded first.
        for ((i = ${#deps[@]} - 1; i >= 0; i--)); do echo "${deps[i]}"; done
        echo "$path"
    done | awk '!seen[$0]++'
}

# Packs a folder as the kernel unpacks it: the same bytes from the same files.
pack_initramfs() { # FOLDER FILE
    find "$1" -exec touch -h -d @0 {} +
    (cd "$1" && find . -mindepth 1 -print0 | LC_ALL=C sort -z |
        cpio --quiet --null -o -H newc --owner=0:0 --reproducible) >"$2.new"
    mv "$2.new" "$2"
}
