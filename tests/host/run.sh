#!/bin/bash
# Tests anklume on real hosts in qemu: Debian 13 with Incus 6.0 of the release, which is upgraded in place at the end, and
# with Incus 7 of the backports. Takes about 20 minutes, and a few more the first time.
#
#   bash tests/host/run.sh BINARY [trixie|trixie-backports]…
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ "$(id -u)" = 0 ] || { echo 'host: run this as root' >&2; exit 2; }
binary=$1
shift
[ $# -gt 0 ] || set -- trixie trixie-backports
export PORT=${PORT:-2222}
hosts=target/hosts
mkdir -p "$hosts"
# The dev binary is large only because of its debug information.
strip -o "$hosts/anklume" "$binary"

stop() {
    local pid
    pid=$(cat "$hosts/host/qemu.pid" 2>/dev/null) || return 0
    # The number may have been given to another process since.
    case $(readlink "/proc/$pid/exe") in */qemu-*) kill -9 "$pid" ;; esac
}
trap stop EXIT
status=0
for suite in "$@"; do
    rm -rf "$hosts/host"
    INCUS=$suite bash tests/host/up.sh "$hosts/host" "$hosts/anklume"
    upgrade=''
    [ "$suite" != trixie ] || upgrade=upgrade
    bash tests/host/scenario.sh "$hosts/host" $upgrade || status=1
    stop
done
exit "$status"
