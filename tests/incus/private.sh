#!/bin/sh
# Runs a command with its own Incus daemon: sh tests/incus/private.sh COMMAND [ARGUMENT…]
#
# The command, the daemon, its machines and everything that they start run in their own namespaces and cgroup, on empty
# file systems in memory. No daemon of the host is needed or touched, and everything ends with the command.
# Several can run at once; each sees its own bridges, sockets, processes, /run, /etc and /var/lib/anklume. The daemon
# has a storage pool `default` and an image `bb`, which contains only busybox; this state is created once and kept
# in target/incus.
#
# Needs root, Incus and busybox (tests/setup.sh), but neither systemd nor a network. For experiments, run
# `sh tests/incus/private.sh sh`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
kept=$here/../../target/incus
incusd=/usr/libexec/incus/incusd
[ -x "$incusd" ] || incusd=$(command -v incusd) || incusd=

fail() {
    printf 'incus: %s\n' "$*" >&2
    exit 1
}

# --- outside: a folder, a cgroup, namespaces ---

# Prints the folder of this shell's cgroup in each mounted hierarchy, one per line.
own_cgroups() {
    while IFS=: read -r _ controllers path; do
        awk -v wanted="$controllers" -v path="$path" '
            { split($0, half, " - "); split(half[1], mount, " "); split(half[2], type, " "); options = "," type[3] "," }
            (wanted == "" && type[1] == "cgroup2") ||
            (wanted != "" && type[1] == "cgroup" && index(options, "," wanted ",")) { print mount[5] path; exit }
        ' /proc/self/mountinfo
    done </proc/self/cgroup
}

# Mounts all hierarchies of the kernel that are not mounted yet, in this script's own mount namespace.
mount_cgroups() {
    if [ "$(wc -l </proc/self/cgroup)" = 1 ]; then
        mount -t cgroup2 none /sys/fs/cgroup
        return
    fi
    mount -t tmpfs -o mode=755 none /sys/fs/cgroup
    while IFS=: read -r _ controllers _; do
        folder=/sys/fs/cgroup/${controllers#name=}
        [ -n "$controllers" ] || folder=/sys/fs/cgroup/unified
        mkdir "$folder"
        if [ -n "$controllers" ]; then
            mount -t cgroup -o "$controllers" none "$folder"
        else
            mount -t cgroup2 none "$folder"
        fi
    done </proc/self/cgroup
}

# liblxc takes the cgroup of process 1, strips `init.scope` from its end, and creates the machines' cgroups there.
enter_cgroups() {
    own_cgroups | while read -r folder; do
        group=${folder%/}/$name
        echo "$group" >>"$scratch/cgroups"
        mkdir -p "$group/init.scope"
        # A new cpuset of version 1 has no processors and no memory, and accepts no processes.
        for file in cpuset.cpus cpuset.mems; do
            for one in "$group" "$group/init.scope"; do
                [ ! -e "${folder%/}/$file" ] || [ ! -e "$one/$file" ] || cat "${folder%/}/$file" >"$one/$file"
            done
        done
        echo "$1" >"$group/init.scope/cgroup.procs"
    done
}

# Thaws the machines that a failed test left paused: a frozen process does not die, and the namespace waits for it.
thaw() {
    [ -f "$scratch/cgroups" ] || return 0
    while read -r group; do
        find "$group" -name freezer.state -exec sh -c 'echo THAWED >"$1"' sh {} \; 2>/dev/null || true
        find "$group" -name cgroup.freeze -exec sh -c 'echo 0 >"$1"' sh {} \; 2>/dev/null || true
    done <"$scratch/cgroups"
}

clean() {
    trap - EXIT
    # The kernel may still be ending the last processes.
    left=100
    while [ -f "$scratch/cgroups" ]; do
        stay=
        while read -r group; do
            [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || stay=yes
        done <"$scratch/cgroups"
        [ -n "$stay" ] && [ "$left" -gt 0 ] || break
        sleep 0.05
        left=$((left - 1))
    done
    rm -rf --one-file-system "$scratch"
}

outside() {
    [ "$(id -u)" = 0 ] || fail 'a daemon of its own needs root'
    [ -n "$incusd" ] || fail 'Incus is not installed: tests/setup.sh installs it'
    [ -n "$(own_cgroups)" ] || exec unshare --mount sh "$here/private.sh" --with-cgroups "$@"
    case $1 in --make-state) ;; *) provide_state ;; esac
    scratch=$(mktemp -d "/tmp/${ANKLUME_TEST_RUN:-anklume-tests}.XXXXXX")
    name=$(basename "$scratch")
    inside=
    trap clean EXIT
    # On a signal to end, clean everything up first.
    trap 'thaw; kill -9 $inside 2>/dev/null; exit 143' TERM INT HUP
    mkdir "$scratch/cgroup"
    # Runs in a separate process, so that this one stays outside and can remove the cgroup.
    sh "$here/private.sh" --enter "$name" "$scratch" "$@" <&0 &
    inside=$!
    status=0
    wait "$inside" || status=$?
    exit "$status"
}

enter() {
    name=$1 scratch=$2
    shift 2
    enter_cgroups $$
    # A shell makes its background jobs ignore these signals; restore the defaults.
    exec env --default-signal=INT,QUIT unshare --mount --net --pid --ipc --uts --fork --kill-child --mount-proc \
        sh "$here/private.sh" --inside "$scratch" "$@"
}

# --- inside: empty file systems, a daemon ---

memory() { mount -t tmpfs -o "mode=$2" anklume-tests "$1"; }

# Detaches the mounts from the host's, and mounts empty file systems over the folders that a daemon uses.
own_file_systems() {
    mount --make-rprivate /
    # Show the network devices and cgroups of the namespaces.
    mount --rbind /sys/fs/cgroup "$scratch/cgroup"
    umount -l /sys
    mount -t sysfs sysfs /sys
    mount --rbind "$scratch/cgroup" /sys/fs/cgroup
    umount -l "$scratch/cgroup"
    mkdir -p /var/lib/incus /var/log/incus /var/cache/incus /var/lib/anklume
    for folder in /run /var/lib/incus /var/log/incus /var/cache/incus /var/lib/anklume; do
        memory "$folder" 0755
    done
    mkdir -m 1777 /run/tmp
    mkdir -p /run/lxc /run/lock /run/etc/above /run/etc/work
    mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/above,workdir=/run/etc/work anklume-tests /etc
    # Make all hosts alike: without a scheduler, because anklume uses one only for a program that nobody but root can change.
    rm -rf /etc/cron.d
    for file in /etc/subuid /etc/subgid; do echo 'root:1000000:1000000000' >"$file"; done
    ip link set lo up
}

# The tests use this too, to restart the daemon.
start_daemon() {
    (cd / && PATH=$(dirname "$incusd"):$PATH exec setsid "$incusd" --group incus-admin --logfile /var/log/incus/incusd.log) \
        </dev/null >/dev/null 2>&1 &
    echo $! >/run/incusd.pid
    "$incusd" waitready --timeout=60 || fail "the daemon does not answer: $(tail -n 5 /var/log/incus/incusd.log)"
}

make_image() {
    root=$1/rootfs
    for folder in bin sbin etc root tmp run proc sys dev opt srv var/log usr/local/bin usr/bin; do mkdir -p "$root/$folder"; done
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in $("$root/bin/busybox" --list); do
        [ -e "$root/bin/$applet" ] || ln -s busybox "$root/bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\nuser:x:1000:\n' >"$root/etc/group"
    cp "$here/init" "$root/sbin/init"
    chmod 0755 "$root/sbin/init"
    printf 'architecture: %s\ncreation_date: 1\nproperties: {os: busybox, release: test, description: busybox}\ntemplates: {}\n' \
        "$(uname -m)" >"$1/metadata.yaml"
    tar -C "$1" -cf "$1/bb.tar" metadata.yaml rootfs
}

# Creates the state of a daemon with a pool and an image: starts a daemon, and shuts it down again.
make_state() {
    start_daemon
    incus admin init --preseed <<'END'
storage_pools: [{name: default, driver: dir}]
profiles: [{name: default, devices: {root: {type: disk, path: /, pool: default}}}]
END
    mkdir /run/image
    make_image /run/image
    incus -q image import /run/image/bb.tar --alias bb
    # A machine without a network card causes hints on stderr; show them only if the machine does not start.
    hints=$(incus -q launch bb probe 2>&1) || true
    answer=$(incus exec probe -- echo ok 2>&1) || true
    [ "$answer" = ok ] || fail "a machine does not start here: $answer
$hints"
    incus -q delete --force probe
    "$incusd" shutdown --timeout 20
    tar -C /var/lib/incus -cf "$1.new" --exclude=unix.socket --exclude=./guestapi --exclude=./shmounts --exclude=./devices .
    mv "$1.new" "$1"
}

# Prints the path of the state file. Its name depends on Incus, busybox and the scripts that make the state.
state_file() {
    made_from=$({ "$incusd" --version && cat "$here/private.sh" "$here/init" "$(command -v busybox)"; } | cksum | cut -d' ' -f1)
    echo "$kept/state-$made_from.tar"
}

provide_state() {
    state=$(state_file)
    [ ! -f "$state" ] || return 0
    mkdir -p "$kept"
    # A second process finds the state that the first one created.
    (
        flock 9
        [ -f "$state" ] || sh "$here/private.sh" --make-state "$state"
        find "$kept" -name 'state-*' ! -path "$state" -delete
    ) 9>"$kept/lock"
}

# Mounts a stripped copy of the program under test over it: the same code in half the bytes, for the machines.
provide_program() {
    [ -n "${NEXTEST_BIN_EXE_anklume:-}" ] || return 0
    stripped=$kept/anklume-$(stat -c '%i-%Y-%s' "$NEXTEST_BIN_EXE_anklume")
    (
        flock 9
        [ -f "$stripped" ] || { strip -o "$stripped.new" "$NEXTEST_BIN_EXE_anklume" && mv "$stripped.new" "$stripped"; }
        find "$kept" -name 'anklume-*' ! -path "$stripped" -mmin +60 -delete
    ) 9>"$kept/lock"
    mount --bind "$stripped" "$NEXTEST_BIN_EXE_anklume"
}

# Exits with the command; the kernel then ends everything in the namespace.
inside() {
    scratch=$1
    shift
    own_file_systems
    case $1 in
    --make-state)
        make_state "$2"
        exit
        ;;
    esac
    provide_program
    tar -C /var/lib/incus -xf "$(state_file)"
    start_daemon
    export TMPDIR=/run/tmp ANKLUME_TEST_INCUS=private
    status=0
    "$@" || status=$?
    thaw
    exit "$status"
}

case ${1:-} in
--enter) shift && enter "$@" ;;
--with-cgroups) shift && mount_cgroups && outside "$@" ;;
--inside)
    [ "$$" = 1 ] || fail '--inside is for the first process of a namespace'
    shift && inside "$@"
    ;;
--start)
    grep -q '^anklume-tests /run tmpfs' /proc/mounts || fail '--start is for a command that this script runs'
    start_daemon
    ;;
'') fail 'usage: sh tests/incus/private.sh COMMAND [ARGUMENT…]' ;;
*) outside "$@" ;;
esac
