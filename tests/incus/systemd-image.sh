#!/bin/sh
# Makes the image `bookworm-systemd` of Incus, where it is not there: a Debian whose first process is systemd, with gpg.
set -eu
cd "$(dirname -- "$0")"
alias=bookworm-systemd
packages='systemd systemd-sysv dbus gnupg'
finish() { :; }
. ./debian-image.sh
