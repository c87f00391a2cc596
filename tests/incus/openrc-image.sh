#!/bin/sh
# Makes the image `bookworm-openrc` of Incus, where it is not there: a Debian whose services OpenRC runs, with gpg.
set -eu
cd "$(dirname -- "$0")"
alias=bookworm-openrc
packages='gnupg'

# debootstrap would take sysv-rc for the first process, which does not go together with OpenRC: apt chooses better.
finish() {
    DEBIAN_FRONTEND=noninteractive unshare --mount chroot "$1" \
        apt-get install -y -qq --no-install-recommends openrc sysvinit-core || return 1
    # A machine has no terminals of its own, and Incus asks it to stop by the signal of a power failure.
    sed -i '/getty/d; s|^pf:.*|pf::powerwait:/sbin/init 0|' "$1/etc/inittab"
    # For the tests: written when all services have been started.
    echo 'up:2:wait:/usr/bin/touch /run/up' >>"$1/etc/inittab"
}
. ./debian-image.sh
