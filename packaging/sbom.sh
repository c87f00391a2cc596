#!/bin/sh
# Writes the software bill of materials (CycloneDX 1.5, JSON) of this commit: the same bytes wherever and whenever it runs.
#
#   packaging/sbom.sh FILE      needs cargo-cyclonedx
set -eu
cd "$(dirname -- "$0")/.."
out=$1
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH
trap 'rm -f -- anklume.cdx.json' EXIT
cargo cyclonedx --quiet --format json --spec-version 1.5 --target x86_64-unknown-linux-gnu --override-filename anklume.cdx
# References to this package contain the path of this folder, and the package's name unless the folder has it.
sed -E 's|"path\+file://[^"#]*#(anklume@)?|"pkg:cargo/anklume@|' anklume.cdx.json >"$out"
if grep -n 'path+file:' "$out" >&2; then
    echo 'sbom: a path of this computer is left' >&2
    exit 1
fi
