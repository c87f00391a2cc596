#!/bin/sh
# Undoes what tests/incus/up.sh noted in /run/anklume-tests, and nothing else: stops the daemon that it started,
# removes the images that it, systemd-image.sh and openrc-image.sh made, and, where there was no Incus state before, all state.
set -u
notes=/run/anklume-tests
[ -d "$notes" ] || exit 0

say() { printf 'incus: %s\n' "$*"; }
noted() { cat "$notes/$1" 2>/dev/null; }

delete_what_tests_left() {
    incus list --all-projects -f csv -c ne | while IFS=, read -r name project; do
        incus delete --force "$name" --project "$project" </dev/null
    done
    incus network list -f csv | awk -F, '$3 == "YES" {print $1}' | while read -r name; do
        incus network delete "$name" </dev/null
    done
}

stop_daemon() {
    pid=$1
    # The number could be another process's by now.
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = incusd ] || return 0
    "$(readlink "/proc/$pid/exe")" shutdown --timeout 20 >/dev/null || kill "$pid"
    left=100
    while kill -0 "$pid" 2>/dev/null && [ "$left" -gt 0 ]; do
        sleep 0.1
        left=$((left - 1))
    done
    if kill -0 "$pid" 2>/dev/null; then
        say 'the daemon did not end in time; killed' >&2
        kill -9 "$pid"
    fi
}

remove_state() {
    awk '$2 ~ /^\/var\/lib\/incus/ {print $2}' /proc/mounts | sort -r | while read -r mount; do
        umount "$mount" 2>/dev/null || umount -l "$mount"
    done
    rm -rf /var/lib/incus/* /run/incus /var/log/incus/* /var/cache/incus/*
    for group in /sys/fs/cgroup/*/lxc.* /sys/fs/cgroup/lxc.*; do
        [ ! -d "$group" ] || rmdir "$group" 2>/dev/null
    done
}

# Takes a line out of a file of the system that up.sh added to it.
take_out() {
    line=$(noted "$(basename "$1")") || return 0
    grep -vxF -- "$line" "$1" >"$1.anklume" || true
    cat "$1.anklume" >"$1"
    rm -f "$1.anklume"
}

if [ -n "$(noted fresh)" ]; then
    delete_what_tests_left >/dev/null 2>&1
else
    for image in "$notes"/image*; do
        [ ! -f "$image" ] || incus image delete "$(cat "$image")"
    done
    if [ -n "$(noted pool)" ]; then
        incus -q profile device remove default root
        incus -q storage delete default
    fi
fi
[ -z "$(noted pid)" ] || stop_daemon "$(noted pid)"
[ -z "$(noted unit)" ] || systemctl stop incus.socket incus.service
if [ -n "$(noted fresh)" ]; then
    remove_state
    take_out /etc/subuid
    take_out /etc/subgid
    [ -z "$(noted cgroup)" ] || umount /sys/fs/cgroup
fi
rm -rf "$notes"
say 'stopped, as before'
