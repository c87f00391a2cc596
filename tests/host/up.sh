#!/bin/bash
# Makes and boots a real host in qemu: Debian 13 with systemd as PID 1, AppArmor, and Incus from Debian's packages, with a
# `dir` pool, a `btrfs` pool and two images, `bb` (busybox) and `deb` (Debian with systemd and gpg).
#
#   INCUS=trixie|trixie-backports PORT=2222 bash tests/host/up.sh FOLDER BINARY
#
# Run it as root on Debian 12 or later: every package comes from this computer's own apt sources. KVM is not needed.
# FOLDER/../tree-* keeps the installed trees, so that only the first run takes minutes. Afterwards:
#
#   FOLDER/ssh COMMAND   runs a command as root, or as another user with AS=USER
#   FOLDER/boot          starts the host again after `FOLDER/ssh poweroff` or a power cut
#   FOLDER/qemu.pid      its process; killing it is a power cut
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive
INCUS=${INCUS:-trixie} PORT=${PORT:-2222}
BINARY=$(realpath "$2")
mkdir -p "$1"
FOLDER=$(realpath "$1")
CACHE=$(dirname "$FOLDER")
cd "$CACHE"
say() { printf 'host: %s (%s s)\n' "$*" "$SECONDS"; }

# --- tools ---

if ! command -v qemu-system-x86_64 >/dev/null || ! command -v debootstrap >/dev/null; then
    apt-get update -qq
    tools='qemu-system-x86 debootstrap openssh-client e2fsprogs'
    # Where backports are in use already, the plain qemu may conflict with them.
    # shellcheck disable=SC2086 # a list of names
    apt-get install -y -qq --no-install-recommends $tools >/dev/null 2>&1 ||
        apt-get install -y -qq --no-install-recommends -t bookworm-backports $tools >/dev/null
    say 'tools installed'
fi

# --- trees ---

# The archive and the key that this computer itself uses.
sources=/etc/apt/sources.list.d/debian.sources
archive=$(awk '/^URIs:/{print $2; exit}' $sources)
key=$(awk '/^Signed-By:/{print $2; exit}' $sources)

debian() { # FOLDER PACKAGES
    unshare --mount debootstrap --variant=minbase --force-check-gpg --keyring="$key" --include="$2" trixie "$1" "$archive" \
        >"${1//\//-}.log" 2>&1
}

inside() { # TREE COMMAND: runs a command in a tree, with /proc
    unshare --mount sh -c 'mount -t proc proc "$1/proc" && exec chroot "$1" sh -c "$2"' sh "$1" "$2"
}

make_tree() {
    local tree=$1
    rm -rf --one-file-system "$tree"
    debian "$tree" linux-image-cloud-amd64,systemd-sysv,systemd-resolved,udev,dbus,apparmor,dnsmasq-base,nftables,gnupg,git,busybox-static,openssh-server,iproute2,iputils-ping,procps,kmod,e2fsprogs,btrfs-progs,ca-certificates,zstd,xz-utils,attr,qemu-utils
    for suite in trixie trixie-backports; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $suite main"
    done >"$tree/etc/apt/sources.list"
    cp --remove-destination /etc/resolv.conf "$tree/etc/resolv.conf"
    inside "$tree" "apt-get update -qq
        apt-get install -y -qq --no-install-recommends -t $INCUS incus incus-client
        apt-get clean
        # For the upgrade in place, which has no network.
        mkdir -p /srv/upgrade/partial
        [ $INCUS != trixie ] || apt-get install -y -qq --download-only --no-install-recommends -t trixie-backports \
            -o Dir::Cache::archives=/srv/upgrade incus incus-client" >"$tree.incus.log" 2>&1
    ln -sf ../run/systemd/resolve/stub-resolv.conf "$tree/etc/resolv.conf"
    echo vmhost >"$tree/etc/hostname"
    printf '127.0.0.1 localhost vmhost\n' >"$tree/etc/hosts"
    printf '/dev/vda / ext4 defaults 0 1\n' >"$tree/etc/fstab"
    printf '[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n' >"$tree/etc/systemd/network/80-dhcp.network"
    chroot "$tree" systemctl enable systemd-networkd ssh >/dev/null 2>&1
    useradd -R "$PWD/$tree" -m -s /bin/bash -G incus-admin op
}

# An image of Incus: FOLDER.tar of FOLDER/rootfs.
pack() {
    printf 'architecture: x86_64\ncreation_date: 1\nproperties: {os: %s}\ntemplates: {}\n' "$1" >"$1/metadata.yaml"
    tar -C "$1" -cf "$1.new" metadata.yaml rootfs
    mv "$1.new" "$1.tar"
}

make_images() {
    local root=bb/rootfs
    rm -rf --one-file-system deb bb
    mkdir -p deb bb
    debian deb/rootfs systemd,systemd-sysv,dbus,gnupg
    (
        cd deb/rootfs
        rm -rf etc/hostname etc/resolv.conf var/cache/apt/* var/lib/apt/lists/* usr/share/doc/* usr/share/man/* usr/share/locale/*
        : >etc/machine-id
    )
    chroot deb/rootfs useradd -m -s /bin/bash signer
    pack deb
    (cd / && mkdir -p "$CACHE/$root"/{bin,sbin,etc,root,tmp,run,proc,sys,dev,opt,srv,var/log,usr/local/bin,usr/bin})
    chmod 1777 $root/tmp
    cp "tree-$INCUS/bin/busybox" $root/bin/busybox
    for name in $($root/bin/busybox --list); do [ -e "$root/bin/$name" ] || ln -s busybox "$root/bin/$name"; done
    printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n' >$root/etc/passwd
    printf 'root:x:0:\nuser:x:1000:\n' >$root/etc/group
    # `incus stop` sends PWR.
    cat >$root/sbin/init <<'X'
#!/bin/sh
trap 'exit 0' PWR TERM
mount -t tmpfs -o mode=755 none /run 2>/dev/null
ip link set lo up 2>/dev/null
while :; do sleep 1000 & wait $!; done
X
    chmod 755 $root/sbin/init
    pack bb
}

tree=tree-$INCUS
if [ ! -e "$tree.done" ]; then
    make_tree "$tree"
    touch "$tree.done"
    say "tree of Debian with Incus of $INCUS made"
fi
if [ ! -e deb.tar ] || [ ! -e bb.tar ]; then
    make_images
    say 'images made'
fi

# --- the disk ---

cd "$FOLDER"
[ -f key ] || ssh-keygen -q -t ed25519 -N '' -f key
root=$CACHE/$tree
for home in root home/op; do
    mkdir -p "$root/$home/.ssh"
    chmod 700 "$root/$home/.ssh"
    cp key.pub "$root/$home/.ssh/authorized_keys"
done
chroot "$root" chown -R op:op /home/op
install -m 0755 "$BINARY" "$root/usr/local/bin/anklume"
cp "$CACHE/bb.tar" "$CACHE/deb.tar" "$root/srv/"
rm -f disk.img pool.img
truncate -s 16G disk.img
mke2fs -q -t ext4 -F -d "$root" disk.img
rm "$root/srv/bb.tar" "$root/srv/deb.tar"
truncate -s 8G pool.img
cp "$root"/boot/vmlinuz-* vmlinuz
cp "$root"/boot/initrd.img-* initrd
# Emulated SVM crashes qemu once Incus looks for virtual machines.
cat >boot <<X
#!/bin/sh
cd $FOLDER
exec setsid qemu-system-x86_64 -machine q35 -accel tcg,thread=multi,tb-size=1024 -cpu max,-svm -m 4G -smp 2 -display none \\
    -serial file:console.log -kernel vmlinuz -initrd initrd -append 'root=/dev/vda rw console=ttyS0 apparmor=1 security=apparmor' \\
    -drive file=disk.img,format=raw,if=virtio,cache=unsafe -drive file=pool.img,format=raw,if=virtio,cache=unsafe \\
    -netdev user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:$PORT-:22 -device virtio-net-pci,netdev=n -device virtio-rng-pci \\
    -pidfile qemu.pid </dev/null >qemu.log 2>&1
X
cat >ssh <<X
#!/bin/sh
exec ssh -q -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=5 -o ServerAliveInterval=10 \\
    -i $FOLDER/key -p $PORT "\${AS:-root}@127.0.0.1" "\$@"
X
chmod +x boot ssh
say 'disk made'

# --- Incus ---

./boot &
for _ in $(seq 240); do
    ./ssh true 2>/dev/null && break
    sleep 1
done
./ssh true
say 'booted'
./ssh sh -es <<'X'
incus admin init --preseed <<'Y'
storage_pools: [{name: default, driver: dir}]
profiles: [{name: default, devices: {root: {type: disk, path: /, pool: default}}}]
Y
incus -q storage create btr btrfs source=/dev/vdb
for image in bb deb; do incus -q image import /srv/$image.tar --alias $image; done
rm /srv/bb.tar /srv/deb.tar
echo "host: kernel $(uname -r), AppArmor $(cat /sys/module/apparmor/parameters/enabled), Incus $(incus query /1.0 | sed -n 's/.*"server_version": "\(.*\)",*/\1/p')"
X
say ready
