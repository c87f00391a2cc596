#!/bin/sh
# Packs the built release, its pages and its completions into a tarball whose bytes depend on the commit and on the
# compiler alone, with its SHA-256 and its software bill of materials beside it.
#
#   packaging/tarball.sh STAGE OUT      STAGE: what `make install` wrote; OUT: the folder of the tarball
set -eu
cd "$(dirname -- "$0")/.."
stage=$1 out=$2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=anklume-$version-x86_64-linux
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH LC_ALL=C

case $("$stage/usr/bin/anklume" --version) in
*"($(git rev-parse --short=12 HEAD))"*) ;;
*)
    echo 'tarball: the program is not built from this commit alone: commit the changes, and run `make tarball`' >&2
    exit 1
    ;;
esac
tree=$(mktemp -d)
trap 'rm -rf -- "$tree"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
strings -n 4 "$stage/usr/bin/anklume" >"$tree/strings"
if grep -F "${CARGO_HOME:-$HOME/.cargo}/" "$tree/strings" >&2; then
    echo 'tarball: the program contains paths of this computer: run `make tarball`' >&2
    exit 1
fi
mkdir -p "$tree/$name/docs" "$out"
cp -R "$stage/usr/bin" "$stage/usr/share" "$tree/$name/"
cp README.md infra.example.yml "$tree/$name/"
cp docs/*.md docs/LICENSE-* "$tree/$name/docs/"
tar --sort=name --format=gnu --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --mode='u+rwX,go=rX' -C "$tree" -cf "$tree/tar" "$name"
gzip -9n <"$tree/tar" >"$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
sh packaging/sbom.sh "$out/$name.cdx.json"
cat "$out/$name.tar.gz.sha256"
