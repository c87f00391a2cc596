#!/bin/sh
# The whole test run: installs dependencies, then runs every test in its own process (.config/nextest.toml).
# Arguments are passed to `cargo nextest run`, as in `sh tests/run.sh -E 'test(policy)'`.
#
# As root, the run has its own process namespace, and each Incus test its own daemon (tests/incus/private.sh): nothing
# outlives the run. If a test leaves anything behind, the run lists it at the end and fails. The last line counts
# the tests.
set -eu
cd "$(dirname -- "$0")/.."
results=target/nextest

fail() {
    printf 'tests: %s\n' "$*" >&2
    exit 1
}

# --- before ---

prepare() {
    sh tests/setup.sh test
    PATH=$PWD/target/tools/bin:$PATH
    # If this computer has no recent Node, setup.sh has installed one here.
    [ ! -d target/node-program/path ] || PATH=$PWD/target/node-program/path:$PATH
    export PATH
    cargo nextest --version >/dev/null 2>&1 || fail 'cargo-nextest is missing: sh tests/setup.sh'
    cargo build --tests
    if [ -n "${ANKLUME_TEST_LONG:-}" ] && [ "$(id -u)" = 0 ]; then
        for init in systemd openrc; do sh tests/incus/debian-image.sh "$init"; done
    fi
    mkdir -p "$results"
    rm -f "$results"/*/junit.xml "$results/skipped" "$results/left"
}

# --- the run ---

run() {
    status=0
    ANKLUME_TEST_SKIPPED=$PWD/$results/skipped cargo nextest run "$@" || status=$?
    return "$status"
}

# Runs as the first process of a namespace: when it exits, the kernel kills everything else in the namespace.
run_inside() {
    status=0
    run "$@" || status=$?
    # The last processes may still be exiting.
    rest=50
    while processes >"$results/left" && [ -s "$results/left" ] && [ "$rest" -gt 0 ]; do
        sleep 0.1
        rest=$((rest - 1))
    done
    find "$TMPDIR" -mindepth 1 | head -n 20 >>"$results/left"
    exit "$status"
}

# Stops the run, and removes what its daemons left: when a namespace's first process dies, everything else in it dies.
stop() {
    trap '' TERM INT HUP
    kill -9 "$running" 2>/dev/null || true
    wait "$running" || true
    # The kernel may still be killing the last processes.
    rest=50
    while find /sys/fs/cgroup -depth -type d -path "*/$ANKLUME_TEST_RUN.*" -exec rmdir {} + 2>/dev/null || true
        find /sys/fs/cgroup -type d -name "$ANKLUME_TEST_RUN.*" | grep -q . && [ "$rest" -gt 0 ]; do
        sleep 0.1
        rest=$((rest - 1))
    done
    rm -rf --one-file-system -- "$TMPDIR" /tmp/"$ANKLUME_TEST_RUN".*
    exit 143
}

# Lists every process of the namespace except this shell and its own commands.
processes() {
    for process in /proc/[0-9]*; do
        number=${process#/proc/}
        [ "$number" != 1 ] || continue
        parent=$(sed -n 's/^PPid:\t//p' "$process/status" 2>/dev/null) || continue
        command=$(tr '\0' ' ' <"$process/cmdline" 2>/dev/null) || continue
        # A zombie has no command line.
        [ -n "$command" ] || continue
        printf 'process %s (parent %s): %s\n' "$number" "$parent" "$command"
    done
}

# Prints everything that a test could leave on this computer outside its namespaces, even if others left it.
host() {
    for path in /run/anklume* /var/lib/anklume /var/lib/anklume/* /var/lib/incus /etc/cron.d/anklume /tmp/"$ANKLUME_TEST_RUN".*; do
        [ ! -e "$path" ] || echo "$path"
    done
    grep anklume-tests /proc/mounts
    ls /sys/class/net | grep -E '^net-w[0-9]+[ab]$'
    find /sys/fs/cgroup -type d -name "$ANKLUME_TEST_RUN.*"
}

# --- after ---

count() { sed -n "s/^<testsuites .* $1=\"\([0-9]*\)\".*/\1/p" "$results"/*/junit.xml 2>/dev/null | head -n 1; }

report() {
    changed=0
    [ ! -s "$results/left" ] || changed=1
    if [ "$changed" = 1 ]; then
        echo 'tests: left behind:'
        sed 's/^/  /' "$results/left"
    fi
    after=$(host || true)
    if [ "$before" != "$after" ]; then
        echo 'tests: this computer has changed; before, and after:'
        printf '%s\n' "$before" >"$results/before"
        printf '%s\n' "$after" | diff "$results/before" - || true
        changed=1
    fi
    ran=$(count tests) failures=$(count failures) errors=$(count errors)
    ran=${ran:-0} failed=$((${failures:-0} + ${errors:-0}))
    left_out=0
    if [ -s "$results/skipped" ]; then
        sort -u "$results/skipped"
        left_out=$(cut -f 2 "$results/skipped" | sort -u | wc -l)
    fi
    all=$(cargo nextest list --run-ignored all --ignore-default-filter --message-format oneline 2>/dev/null | wc -l)
    printf '%s passed, %s failed, %s skipped\n' "$((ran - failed - left_out))" "$failed" "$((all - ran + left_out))"
    return "$changed"
}

# The folders and cgroups of this run's daemons have this prefix.
export ANKLUME_TEST_RUN="${ANKLUME_TEST_RUN:-anklume-tests.$$}"
if [ "${1:-}" = --inside ]; then
    shift
    run_inside "$@"
fi

prepare
TMPDIR=$(mktemp -d /tmp/anklume.XXXXXX)
# Tests also run programs as other users.
chmod 1777 "$TMPDIR"
export TMPDIR
profile=${ANKLUME_TEST_LONG:+long}
if [ "$(id -u)" != 0 ] || ! { [ -x /usr/libexec/incus/incusd ] || command -v incusd >/dev/null; }; then
    [ "${CI:-}" != true ] || fail 'the Incus tests need root and Incus'
    echo 'tests: the Incus tests need root and Incus, and are skipped'
    profile=${profile:+$profile-}without-incus
fi
export NEXTEST_PROFILE="${profile:-default}"
if [ "$(id -u)" = 0 ]; then
    before=$(host || true)
    status=0
    # A shell makes its background jobs ignore signals that the tests send; restore the defaults.
    env --default-signal=HUP,INT,QUIT unshare --mount --pid --fork --kill-child --mount-proc \
        sh tests/run.sh --inside "$@" &
    running=$!
    trap stop TERM INT HUP
    wait "$running" || status=$?
    trap - TERM INT HUP
else
    before=$(host || true)
    status=0
    run "$@" || status=$?
fi
rm -rf -- "$TMPDIR"
report || status=1
exit "$status"
