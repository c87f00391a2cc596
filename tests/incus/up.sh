#!/bin/sh
# Brings up an Incus that the tests can use: a daemon that answers, and a busybox image under the alias `bb`.
#
# A daemon that runs already is used, and keeps everything that it has. Whatever this script adds to the machine is
# noted in /run/anklume-tests, and tests/incus/down.sh undoes what is noted there and nothing else.
# Needs no systemd. As another user than root it only looks: exit 0 where a usable Incus is there.
set -eu
cd "$(dirname -- "$0")"
notes=/run/anklume-tests

say() { printf 'incus: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}
image_there() { incus image alias list -f csv 2>/dev/null | grep -q '^bb,'; }
answers() { timeout 10 incus query /1.0 >/dev/null 2>&1; }

command -v incus >/dev/null || fail 'not installed: tests/setup.sh installs it'
if [ "$(id -u)" != 0 ]; then
    answers || fail 'does not answer you: start it, and join the group incus-admin; or run the tests as root'
    image_there || fail "there is no image \`bb\`: as root, sh tests/incus/up.sh"
    exit 0
fi
answers && image_there && exit 0

mkdir -p "$notes"
note() { printf '%s\n' "$2" >"$notes/$1"; }

# --- a daemon ---

incusd=/usr/libexec/incus/incusd
[ -x "$incusd" ] || incusd=$(command -v incusd) || fail 'incusd is not installed: tests/setup.sh installs it'

start_by_systemd() {
    note unit incus.service
    systemctl start incus.service
}

start_alone() {
    # State from before is somebody's: down.sh then removes nothing.
    [ -e /var/lib/incus/database ] || note fresh yes
    mkdir -p /var/log/incus
    for file in /etc/subuid /etc/subgid; do
        touch "$file"
        grep -q '^root:' "$file" && continue
        echo 'root:1000000:1000000000' >>"$file"
        note "$(basename "$file")" 'root:1000000:1000000000'
    done
    if ! mountpoint -q /sys/fs/cgroup; then
        mount -t cgroup2 none /sys/fs/cgroup
        note cgroup /sys/fs/cgroup
    fi
    # In a folder that stays: from one that is deleted its rsync does not start.
    (cd / && PATH=$(dirname "$incusd"):$PATH exec setsid "$incusd" --group incus-admin --logfile /var/log/incus/incusd.log) </dev/null >/dev/null 2>&1 &
    note pid "$!"
}

if ! answers; then
    say 'starting the daemon'
    if [ -d /run/systemd/system ]; then start_by_systemd; else start_alone; fi
    "$incusd" waitready --timeout=60 || fail 'the daemon does not answer after 60 s; see /var/log/incus/incusd.log'
fi

# --- a pool and a root disk, where there is none ---

if [ -z "$(incus storage list -f csv)" ]; then
    note pool default
    incus admin init --preseed <<'END'
storage_pools: [{name: default, driver: dir}]
profiles: [{name: default, devices: {root: {type: disk, path: /, pool: default}}}]
END
fi

# --- the image ---

make_image() {
    root=$1/rootfs
    for folder in bin sbin etc root tmp run proc sys dev opt srv var/log usr/local/bin usr/bin; do mkdir -p "$root/$folder"; done
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in $("$root/bin/busybox" --list); do
        [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\nuser:x:1000:\n' >"$root/etc/group"
    cp init "$root/sbin/init"
    chmod 0755 "$root/sbin/init"
    printf 'architecture: %s\ncreation_date: 1\nproperties: {os: busybox, release: test, description: busybox}\ntemplates: {}\n' \
        "$(uname -m)" >"$1/metadata.yaml"
    tar -C "$1" -czf "$1/bb.tar.gz" metadata.yaml rootfs
}

if ! image_there; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    make_image "$scratch"
    incus -q image import "$scratch/bb.tar.gz" --alias bb
    note image "$(incus image list bb -f csv -c F | head -n 1)"
fi

# --- does a machine come up? ---

# Its own name: a machine that is somebody else's is never touched.
probe=anklume-probe-$$
# A machine without a network card comes with hints on stderr; they are shown only when it does not start.
hints=$(incus -q create bb "$probe" 2>&1) || fail "a machine cannot be created here: $hints"
hints=$(incus -q start "$probe" 2>&1) || true
answer=$(incus exec "$probe" -- echo ok 2>&1) || true
incus delete --force "$probe" || true
[ "$answer" = ok ] || fail "a machine does not start here: $answer
$hints"
say 'ready'
