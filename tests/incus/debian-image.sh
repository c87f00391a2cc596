#!/bin/sh
# Makes target/incus/debian-INIT.tar if it is missing: an Incus image of a complete Debian with gpg, for the long tests.
#
#   tests/incus/debian-image.sh systemd|openrc
#
# debootstrap builds the system in a minute, from the archive and with the key that this machine itself uses. Needs root
# and a network, which the tests' own Incus does not have; therefore tests/run.sh calls this before the tests start.
set -eu
cd "$(dirname -- "$0")"
. ../debian-archive.sh
init=${1:-}
suite=bookworm
cache=$PWD/../../target/incus

say() { printf 'incus: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}

case $init in
systemd)
    # For an MCP server that is written in Python, and for commits that are signed by SSH.
    packages=systemd,systemd-sysv,dbus,gnupg,git,openssh-client,python3-venv
    finish() { :; }
    ;;
openrc)
    packages=gnupg
    # debootstrap would install sysv-rc, which conflicts with OpenRC; apt resolves the dependency correctly.
    finish() {
        DEBIAN_FRONTEND=noninteractive unshare --mount chroot "$1" \
            apt-get install -y -qq --no-install-recommends openrc sysvinit-core || return 1
        # A machine has no terminals, and Incus asks it to stop with the signal for a power failure.
        sed -i '/getty/d; s|^pf:.*|pf::powerwait:/sbin/init 0|' "$1/etc/inittab"
        # For the tests: written once all services have started.
        echo 'up:2:wait:/usr/bin/touch /run/up' >>"$1/etc/inittab"
    }
    ;;
*) fail 'usage: sh tests/incus/debian-image.sh systemd|openrc' ;;
esac

# Remove everything that is specific to one machine: its name, its ID, its network configuration.
make_plain() {
    rm -f "$1/etc/hostname" "$1/etc/resolv.conf"
    : >"$1/etc/machine-id"
    for folder in var/cache/apt var/lib/apt/lists usr/share/doc usr/share/man usr/share/locale; do
        find "$1/$folder" -mindepth 1 -delete
    done
}

make_tarball() {
    find_archive
    say "making debian-$init by debootstrap (a minute)"
    root=$scratch/rootfs
    log=$scratch/log
    {
        # Runs in a new mount namespace, so that no mount of debootstrap outlives it.
        unshare --mount debootstrap --variant=minbase --include="$packages" \
            --force-check-gpg ${key:+"--keyring=$key"} "$suite" "$root" "$archive" &&
            finish "$root" && make_plain "$root"
    } >"$log" 2>&1 </dev/null || {
        tail -n 15 "$log" >&2
        fail "debian-$init could not be made"
    }
    printf 'architecture: %s\ncreation_date: 1\nproperties: {os: debian, release: %s, description: %s}\ntemplates: {}\n' \
        "$(uname -m)" "$suite" "debian-$init" >"$scratch/metadata.yaml"
    tar -C "$scratch" -cf "$scratch/image.tar" metadata.yaml rootfs
}

# An image that an older version of these steps made is made again.
steps=$cache/debian-$init.steps
if ! cmp -s debian-image.sh "$steps"; then
    mkdir -p "$cache"
    scratch=$(mktemp -d "$cache/new.XXXXXX")
    trap 'rm -rf --one-file-system "$scratch"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    make_tarball
    mv "$scratch/image.tar" "$cache/debian-$init.tar"
    cp debian-image.sh "$steps"
fi
