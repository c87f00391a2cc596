#!/bin/sh
# Builds the release, whose bytes do not depend on where it is built: Cargo's folder would be the only path of this
# computer in it. The variable adds to the flags in .cargo/config.toml; RUSTFLAGS would replace them.
set -eu
cd "$(dirname -- "$0")/.."
case ${CARGO_HOME:-$HOME/.cargo} in
*[[:space:]]*)
    echo 'build: Cargo splits its flags at spaces, so that CARGO_HOME must not contain one' >&2
    exit 1
    ;;
esac
CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS
exec cargo build --release --locked
