# Sourced by every script of ci/ and images/: where things lie, and how a step reports itself.
# shellcheck shell=bash disable=SC2034 # what is unused here is for them
set -euo pipefail

# The checkout, and what is kept outside it between checkouts, by content.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/peapod
# What the Makefile builds: the binaries, and what one finds by PEAPOD_IMAGES.
peapod=$root/target/x86_64-unknown-linux-gnu/release/peapod
network=$root/target/x86_64-unknown-linux-gnu/release/peapod-net
agent=$root/target/x86_64-unknown-linux-gnu/agent/peapod-agent
images=$root/target/images
# Where Debian has mke2fs, depmod and ip, which isn't in everybody's path.
PATH=$PATH:/usr/sbin:/sbin

die() { # STATUS MESSAGE
    echo "$(basename "$0"): $2" >&2
    exit "$1"
}

mkdir -p "$cache" || die 2 "no place for the cache: set XDG_CACHE_HOME to a directory that you may write"

# Runs a command and says in one line how long it took.
shown_step() { # NAME COMMAND...
    local - name=$1 start=$EPOCHREALTIME status
    shift
    # In a subshell of its own with -e, which a command in a condition would lose.
    set +e
    (set -e; "$@")
    status=$?
    if [ "$status" -eq 0 ]; then took "$name" "$start"; else echo "==> $name: failed with status $status" >&2; fi
    return "$status"
}

# The same, with the command's output shown only if it fails.
step() { shown_step "$1" quiet "${@:2}"; }

# The same, for a tool that draws a progress bar: a person at a terminal gets to see it.
long_step() {
    if [ -t 2 ]; then shown_step "$@" >&2; else step "$@"; fi
}

quiet() { # COMMAND..., in a subshell with -e
    local log
    # Without a name, so that nothing stays behind whatever ends this.
    exec {log}<>"$(mktemp --tmpdir step.XXXXXX)"
    rm "$(readlink "/dev/fd/$log")"
    # shellcheck disable=SC2064 # log is known now only
    trap "[ \$? -eq 0 ] || cat /dev/fd/$log >&2" EXIT
    "$@" >&"$log" 2>&1
}

took() { # NAME START
    # EPOCHREALTIME has six digits after its point, or comma.
    local tenths=$(((${EPOCHREALTIME/[.,]/} - ${2/[.,]/} + 50000) / 100000))
    echo "==> $1: $((tenths / 10)).$((tenths % 10)) s" >&2
}

# A root with these packages of Debian's, of the host's release or that one, made once and kept at
# PLACE; what lies beside it and was of no use for a week goes.
keep_root() { # NAME PLACE PACKAGES [SUITE]
    mkdir -p "$(dirname "$2")"
    [ -d "$2" ] || long_step "$1" make_root "${@:2}"
    touch "$2"
    find "$(dirname "$2")" -mindepth 1 -maxdepth 1 -mtime +7 -exec rm -rf {} +
}
make_root() (
    rm -rf "$1".new.*
    tmp=$1.new.$$
    mkdir -p "$tmp"
    trap 'rm -rf "$tmp" "$tmp.tar"' EXIT
    if [ -z "${3:-}" ]; then "$root/images/tree" "$tmp.tar" "$2"; else "$root/images/suite" "$tmp.tar" "$2" "$3"; fi
    tar -xf "$tmp.tar" -C "$tmp" --numeric-owner
    # Another run may have been first; both made the same.
    mv -T "$tmp" "$1" 2>/dev/null || [ -d "$1" ]
)

# What apt would install of each package today, as apt-cache shows it. Kept until apt's lists
# change, for asking takes half a second. Nothing for a package that apt hasn't got.
apt_show() { # PACKAGE...
    local key answer
    key=$(find /etc/apt /var/lib/apt/lists -type f -printf '%p %T@ %s\n' 2>/dev/null | LC_ALL=C sort |
        cat - <(echo "$*") | sha256sum | cut -c1-16)
    answer=$cache/apt/$key
    if [ ! -e "$answer" ]; then
        mkdir -p "$cache/apt"
        apt-cache show --no-all-versions "$@" >"$answer.$$" 2>/dev/null || true
        mv "$answer.$$" "$answer"
    fi
    cat "$answer"
}

# Where other releases of Debian are than the host's own.
debian=http://deb.debian.org/debian

# Sets `other` to apt's options that have it know those suites of Debian's and no other; the last is
# where what it installs comes from. Their lists are kept apart, and are of today.
other_apt() { # SUITE...
    local apt
    apt=$cache/tools/apt-$(IFS=+ && echo "$*")
    other=(
        -q -o APT::Sandbox::User=root -o Acquire::Languages=none -o APT::Default-Release="${*: -1}"
        -o Dir::Etc::sourcelist="$apt/debian.sources" -o Dir::Etc::sourceparts=-
        -o Dir::State::lists="$apt/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$apt/cache"
    )
    [ -z "$(find "$apt/fresh" -mtime -1 2>/dev/null)" ] || return 0
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    cat >"$apt/debian.sources" <<S
Types: deb
URIs: $debian
Suites: $*
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
S
    step "apt-get update for $*" apt-get "${other[@]}" update
    touch "$apt/fresh"
}

# The version of a package that apt has with `other`.
newest() { # PACKAGE
    local version
    version=$(LC_ALL=C apt-cache "${other[@]}" policy "$1" | sed -n 's/^ *Candidate: //p')
    [ -n "$version" ] || die 1 "Debian has no $1"
    echo "$version"
}

# What apt would install besides in a root with this status of dpkg's, a line `NAME=VERSION` each.
apt_would_install() { # STATUS PACKAGE...
    apt-get -s -o Dir::State::status="$1" --no-install-recommends install "${@:2}" |
        sed -n 's/^Inst \([^ ]*\) (\([^ ]*\) .*/\1=\2/p'
}

# Unpacks into the cache, without installing it, the kernel package that the first METAPACKAGE
# known to apt stands for, and sets `kernel` to its folder.
unpack_kernel() { # METAPACKAGE...
    local name package
    for name; do
        package=$(apt_show "$name" | sed -n 's/^Depends: \([^ ,]*\).*/\1/p')
        [ -z "$package" ] || break
    done
    [ -n "$package" ] || die 1 "apt knows no $1; run apt-get update"
    # The file's name has the version in it.
    name=$(basename "$(apt_show "$package" | sed -n 's/^Filename: //p')" .deb)
    kernel=$cache/kernels/$name
    [ -d "$kernel" ] || long_step "kernel $name" unpack_debs list_modules "$kernel" "$package"
    touch "$kernel"
}

# A kernel's package's own installation script would have done this.
list_modules() { depmod -b "$1" "$(ls "$1/lib/modules")"; } # ROOT

# Unpacks packages, which apt finds by `other`, into a folder that appears only when it is whole; what
# they unpack to is FINISHed before, by a command that gets it and the folder.
other=()
unpack_debs() ( # FINISH FOLDER PACKAGE...
    tmp=$2.new.$$
    trap 'rm -rf "$tmp"' EXIT
    mkdir -p "$tmp/deb" "$tmp/root"
    (cd "$tmp/deb" && apt-get -o APT::Sandbox::User=root "${other[@]}" download "${@:3}")
    for package in "$tmp"/deb/*.deb; do dpkg -x "$package" "$tmp/root"; done
    "$1" "$tmp/root" "$2"
    # Another run may have been first; both made the same.
    mv -T "$tmp/root" "$2" 2>/dev/null || [ -d "$2" ]
)

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

# Copies kernel modules and what they need, decompressed, into a folder with a file `load` that
# names them in the order in which they can be loaded.
copy_modules() { # KERNEL FOLDER NAME...
    local modules path to=$2
    modules=$(echo "$1"/lib/modules/*)
    shift 2
    mkdir -p "$to"
    module_closure "$modules" "$@" | while read -r path; do
        case $path in
        *.xz) xz -dc "$modules/$path" >"$to/$(basename "$path" .xz)" ;;
        *) cp "$modules/$path" "$to/" ;;
        esac
        basename "$path" .xz >>"$to/load"
    done
}

# Packs a folder as the kernel unpacks it: the same bytes from the same files.
pack_initramfs() { # FOLDER FILE
    find "$1" -exec touch -h -d @0 {} +
    (cd "$1" && find . -mindepth 1 -print0 | LC_ALL=C sort -z |
        cpio --quiet --null -o -H newc --owner=0:0 --reproducible) >"$2.new"
    mv "$2.new" "$2"
}
