# A Debian image for the long tests; sourced by systemd-image.sh and openrc-image.sh, which have set
#
#   alias     the image's alias on Incus
#   packages  what the system holds besides what every Debian has
#   finish    a function: the last steps, inside the folder $1 of the new system
#
# debootstrap makes the system once, in less than a minute, from the archive and with the key that this machine itself
# uses; it is kept in target/incus, so that the next time is an import. The image is noted in /run/anklume-tests, so
# that tests/incus/down.sh removes it.
suite=bookworm
notes=/run/anklume-tests
cache=$PWD/../../target/incus

say() { printf 'incus: %s\n' "$*"; }
fail() {
    say "$*" >&2
    exit 1
}

! incus query "/1.0/images/aliases/$alias" >/dev/null 2>&1 || exit 0
[ "$(id -u)" = 0 ] || fail "there is no image \`$alias\`: as root, sh tests/incus/$(basename "$0")"
timeout 10 incus query /1.0 >/dev/null 2>&1 || fail 'does not answer: sh tests/incus/up.sh'

# Where this machine's own release comes from; Debian keeps its releases side by side.
find_archive() {
    codename=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME") ||
        fail "no Debian here, so no archive to make $alias from"
    entry=$(apt-get indextargets --format '$(RELEASE)|$(REPO_URI)|$(SOURCESENTRY)' 'Created-By: Packages' |
        awk -F'|' -v r="$codename" '$1 == r' | head -n 1)
    [ -n "$entry" ] || fail "apt has no archive of $codename here, so there is none to make $alias from"
    archive=$(echo "$entry" | cut -d'|' -f2)
    from=$(echo "$entry" | cut -d'|' -f3)
    key=$(sed -n 's/^[Ss]igned-[Bb]y: *\(\/.*\)/\1/p; s/.*\[.*signed-by=\([^] ]*\).*/\1/p' "${from%:*}" | head -n 1)
}

# What a new machine has of its own is not in its image: its name, its number, its way to the net.
make_plain() {
    rm -f "$1/etc/hostname" "$1/etc/resolv.conf"
    : >"$1/etc/machine-id"
    for folder in var/cache/apt var/lib/apt/lists usr/share/doc usr/share/man usr/share/locale; do
        find "$1/$folder" -mindepth 1 -delete
    done
}

make_tarball() {
    find_archive
    say "making $alias by debootstrap (a minute)"
    root=$scratch/rootfs
    log=$scratch/log
    {
        # In a namespace of its own: no mount of debootstrap's outlives it.
        unshare --mount debootstrap --variant=minbase --include="$(echo "$packages" | tr ' ' ',')" \
            --force-check-gpg ${key:+"--keyring=$key"} "$suite" "$root" "$archive" &&
            finish "$root" && make_plain "$root"
    } >"$log" 2>&1 </dev/null || {
        tail -n 15 "$log" >&2
        fail "$alias could not be made"
    }
    printf 'architecture: %s\ncreation_date: 1\nproperties: {os: debian, release: %s, description: %s}\ntemplates: {}\n' \
        "$(uname -m)" "$suite" "$alias" >"$scratch/metadata.yaml"
    tar -C "$scratch" -cf "$scratch/image.tar" metadata.yaml rootfs
    rm -f "$cache/$alias"-*.tar
    mv "$scratch/image.tar" "$tarball"
}

# What was made by other steps than these is made again.
steps=$(cat "$(basename "$0")" debian-image.sh | cksum | cut -d' ' -f1)
tarball=$cache/$alias-$steps.tar
if [ ! -f "$tarball" ]; then
    mkdir -p "$cache"
    scratch=$(mktemp -d "$cache/new.XXXXXX")
    trap 'rm -rf --one-file-system "$scratch"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    make_tarball
fi
incus -q image import "$tarball" --alias "$alias"
mkdir -p "$notes"
incus image list "$alias" -f csv -c F | head -n 1 >"$notes/image-$alias"
say "$alias is there"
