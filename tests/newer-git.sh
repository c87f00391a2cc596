#!/bin/sh
# Runs the tests of signed commits with the git, gpg and OpenSSH of Debian 13 (2.47, 2.4 and 10.0), in a folder of its own,
# and with the git in /usr/bin if another one comes before it; the other tests use those that come first here. Needs root, debootstrap and, the first time, a network.
set -eu
cd "$(dirname -- "$0")/.."
. tests/debian-archive.sh
root=$PWD/target/newer-git

say() { printf 'newer git: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail 'this needs root'
if [ ! -e "$root/made-with-ssh" ]; then
    find_archive
    say 'installing it by debootstrap (a minute)'
    rm -rf --one-file-system "$root"
    mkdir -p "$root"
    # In a new mount namespace, so that no mount of debootstrap outlives it.
    unshare --mount debootstrap --variant=minbase --include=git,gnupg,openssh-client,procps \
        --force-check-gpg ${key:+"--keyring=$key"} trixie "$root" "$archive" >"$root.log" 2>&1 </dev/null || {
        tail -n 15 "$root.log" >&2
        fail 'it could not be installed'
    }
    touch "$root/made-with-ssh"
fi

built=$(cargo test --test integration --no-run 2>&1) || {
    printf '%s\n' "$built" >&2
    fail 'the tests do not build'
}
tests=$(printf '%s\n' "$built" | sed -n 's/.*(\(target[^)]*\)).*/\1/p')
[ -x "$tests" ] || fail 'cargo does not say where the tests are'

# The tests are a static program, and see this folder at the same path. Nothing outlives the namespaces.
export root tests PWD
unshare --mount --pid --fork --kill-child sh -eu <<'INSIDE'
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for folder in tmp run; do mount -t tmpfs tmpfs "$root/$folder"; done
# Last, because this folder may itself be below one of those.
mkdir -p "$root$PWD"
mount --bind "$PWD" "$root$PWD"
run="cd '$PWD' && git --version && './$tests' channel::git:: channel::ssh::git::"
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CI=true sh -c "$run"
INSIDE

if [ -x /usr/bin/git ] && [ "$(git --version)" != "$(/usr/bin/git --version)" ]; then
    /usr/bin/git --version
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$HOME" CI=true "./$tests" channel::git:: channel::ssh::git::
fi
