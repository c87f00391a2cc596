#!/bin/sh
# Installs into target/stage what the Debian package and the tarball contain.
set -eu
cd "$(dirname -- "$0")/.."
rm -rf target/stage
make --no-print-directory install DESTDIR="$PWD/target/stage" PREFIX=/usr
