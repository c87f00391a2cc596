#!/bin/sh
# Tries the Debian package in a new, minimal Debian root: installs it, runs it, upgrades to it, and purges it. Needs root.
#
#   packaging/deb/try.sh PACKAGE [OLDER]
set -eu
package=$1 older=${2:-}
case $(dpkg-deb --field "$package" Package) in anklume) ;; *) echo "try: $package is not anklume" >&2; exit 1 ;; esac
root=$(mktemp -d)
trap 'rm -rf --one-file-system -- "$root"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
# The archive that this computer uses itself.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
mmdebstrap --quiet --mode=root --variant=essential "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$root" "$mirror"
cp -- "$package" "$root/tmp/new.deb"
if [ -n "$older" ]; then
    cp -- "$older" "$root/tmp/old.deb"
    chroot "$root" dpkg --install /tmp/old.deb
    chroot "$root" anklume --version
fi
chroot "$root" dpkg --install /tmp/new.deb
chroot "$root" anklume --version
chroot "$root" dpkg --verify anklume
# It works there, where nothing else is installed.
chroot "$root" sh -c 'cd /tmp && anklume init && anklume sync && anklume policy list'
chroot "$root" sh -c 'test "$(readlink /usr/bin/anklume-gpg)" = anklume && test -s /usr/share/man/man5/infra.yml.5.gz'
rm -rf -- "$root"/tmp/*
chroot "$root" dpkg --purge anklume
left=$(find "$root" -xdev -name '*anklume*' -print)
[ -z "$left" ] || {
    echo "try: left after the purge: $left" >&2
    exit 1
}
echo 'try: installed, ran, upgraded and purged'
