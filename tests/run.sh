#!/bin/sh
# The whole test run: what it needs, Incus where it can be had, `cargo test`, and Incus down again if it came up here.
# Arguments go to `cargo test`.
set -eu
cd "$(dirname -- "$0")/.."

sh tests/setup.sh test
# Where the machine has no Node that is new enough, setup.sh has put one here.
[ ! -d target/node-program/path ] || PATH=$PWD/target/node-program/path:$PATH
export PATH

# Who brought Incus up takes it down; one that runs already stays as it is.
if [ ! -d /run/anklume-tests ]; then
    trap 'status=$?; trap - EXIT; sh tests/incus/down.sh; exit $status' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
fi
if ! sh tests/incus/up.sh; then
    [ "${CI:-}" != true ] || exit 1
    echo 'tests: no Incus here, so what needs it is skipped'
fi

# All failures of a run, not those of the first program alone.
status=0
cargo test --no-fail-fast --lib --bins --test integration "$@" || status=$?
# These wait for Incus and for each other more than they compute.
RUST_TEST_THREADS=${RUST_TEST_THREADS:-6} cargo test --no-fail-fast --test incus "$@" || status=$?
exit "$status"
