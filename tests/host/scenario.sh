#!/bin/bash
# Uses anklume on a real host that tests/host/up.sh booted, and prints a line for each step with its time. Exits with 1 if
# a step failed.
#
#   bash tests/host/scenario.sh FOLDER [upgrade]     with `upgrade`, Incus is upgraded in place near the end
set -uo pipefail
folder=$1 upgrade=${2:-}
failed=0

root() { "$folder/ssh" "$@"; }
member() { AS=op "$folder/ssh" "$@"; }

# Runs a step: NAME FUNCTION…; shows its output only if it fails.
step() {
    local name=$1 began=$SECONDS output
    shift
    if output=$("$@" 2>&1); then
        echo "passed  $name: $((SECONDS - began)) s"
    else
        failed=$((failed + 1))
        echo "FAILED  $name: $((SECONDS - began)) s"
        sed 's/^/        /' <<<"$output" | tail -n 40
    fi
}

# Tries a command until it succeeds: SECONDS COMMAND…
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 1
    done
}

answers() { root true 2>/dev/null; }

# --- what the README shows ---

quick_start() {
    root sh -es <<'X'
mkdir /root/demo
cd /root/demo
anklume init
# A machine with systemd and gpg, which signs as an ordinary user; a consumer on a btrfs pool; a caller who is not root.
sed -i '/^      vault-signer:/a\        os_image: deb\n        mcp: {run_as: signer, tools: {who: {description: Who, command: [/usr/bin/id, -un]}}}' infra.yml
sed -i '0,/^        services:/s//&\n          - {name: who, tool: who, consumers: [work-dev]}/' infra.yml
sed -i '/^      pro-dev:/a\        devices: {root: {type: disk, path: /, pool: btr}}' infra.yml
sed -i '/^      work-dev:/a\        mcp: {uid: 1000, gid: 1000}' infra.yml
echo 'global: {default_os_image: bb}' >>infra.yml
anklume sync
anklume policy check --caller work-dev --service file_sign
anklume apply --dry-run
anklume apply
anklume apply | grep -x 'nothing to do: Incus is as declared'
incus exec vault-signer --project vault -- su signer -c "gpg --batch --passphrase '' --quick-generate-key 'Demo <demo@example.org>' ed25519 sign never"
incus exec vault-signer --project vault -- su signer -c 'gpg --armor --export' | gpg --import
X
    is_well && works
}

is_well() { root 'cd /root/demo && anklume doctor'; }

# Signs a new letter from the consumer as its user, and verifies the signature on the host.
signs() {
    root sh -es <<'X'
date +%N >/root/letter.txt
incus file push -q /root/letter.txt work-dev/tmp/letter.txt --project work --mode 0644
incus exec work-dev --project work --user 1000 --group 1000 -T -- \
    sh -c 'anklume mcp call -i vault-signer file_sign data=@/tmp/letter.txt' </dev/null >/root/letter.txt.asc
gpg --verify /root/letter.txt.asc /root/letter.txt
X
}

# Runs a program of the provider, which is not the server's child.
runs() {
    root sh -es <<'X'
said=$(incus exec work-dev --project work --user 1000 --group 1000 -T -- anklume mcp call -i vault-signer who </dev/null)
[ "$said" = signer ]
X
}

works() { signs && runs; }

pools() { root "incus config device get pro-dev root pool --project pro | grep -x btr && incus exec pro-dev --project pro -- anklume mcp list -i vault-signer | grep file_sign"; }

# --- a member of incus-admin who is not root ---

member_looks() {
    root 'cp -r /root/demo /home/op/demo && chown -R op:op /home/op/demo'
    member 'cd demo && anklume apply --dry-run | grep -x "nothing to do: Incus is as declared" && anklume mcp list -i vault-signer && anklume doctor' || return
    # Only root may make channels, and is named.
    local said
    if said=$(member 'cd demo && anklume apply' 2>&1); then return 1; fi
    printf '%s\n' "$said"
    grep -q 'run this as root' <<<"$said"
}

# --- restarts ---

machines_restart() {
    root 'incus restart vault-signer --project vault && incus restart work-dev --project work' || return
    within 120 works && is_well
}

incus_restarts() { root 'systemctl restart incus.service' && within 60 works && is_well; }

came_back() {
    within 240 answers || return
    # While Incus is starting its machines, a run must not take what it cannot read for missing.
    local seen
    seen=$(root 'cd /root/demo; anklume doctor; anklume apply --dry-run') || true
    printf '%s\n' "$seen"
    if grep -E '^\+ (program|name|services)' <<<"$seen"; then return 1; fi
    within 240 works || return
    within 60 is_well && root 'cd /root/demo && anklume apply | grep -x "nothing to do: Incus is as declared"'
}

reboot() {
    root 'systemctl reboot' || true
    within 60 not answers
    came_back
}

not() { ! "$@"; }

power_cut() {
    kill -9 "$(cat "$folder/qemu.pid")"
    sleep 1
    "$folder/boot" &
    came_back
}

# --- logs ---

log_rotates() {
    root sh -es <<'X'
systemctl is-active anklume-logs.timer
log=$(ls /var/log/incus/work_work-dev/proxy.mcp_*.log)
head -c 30000000 /dev/zero | tr '\0' x >>"$log"
for _ in $(seq 200); do
    [ "$(stat -c %b "$log")" -gt 20000 ] || break
    sleep 1
done
stat -c '%n %s' "$log" "$log.1"
[ "$(stat -c %b "$log")" -le 20000 ] && [ "$(stat -c %s "$log.1")" -le 1048576 ]
X
}

no_denials() { not root "journalctl -k --no-pager | grep 'apparmor=\"DENIED\"' | grep -i -E 'anklume|mcp'"; }

# --- the upgrade in place, and the end ---

upgrades() {
    root 'cd /srv/upgrade && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ./*.deb >/root/upgrade.log 2>&1 && incus query /1.0 | grep "\"server_version\": \"7"' || return
    within 60 signs || return
    root 'incus restart work-dev --project work && incus restart vault-signer --project vault' || return
    within 120 works && is_well && root 'cd /root/demo && anklume apply' && works && one_process_for_each_device
}

one_process_for_each_device() { [ "$(root 'pgrep -f "[f]orkproxy" | wc -l')" = 4 ]; }

revokes() {
    root sh -es <<'X'
cd /root/demo
sed -i 's/consumers: \[work-dev, pro-dev\]/consumers: [work-dev]/' infra.yml
anklume apply >out.txt 2>&1
cat out.txt
grep -x -- '- pro-dev may no longer call vault-signer/file_sign' out.txt
[ "$(pgrep -f '[f]orkproxy' | wc -l)" = 2 ]
! incus exec pro-dev --project pro -- anklume mcp list -i vault-signer
X
}

destroys() {
    root sh -es <<'X'
cd /root/demo
anklume destroy --yes --force
[ "$(incus list --all-projects -f csv | wc -l)" = 0 ]
! systemctl list-unit-files | grep anklume
! pgrep -f '[f]orkproxy'
[ -z "$(ls /var/lib/anklume/mcp)" ]
[ "$(incus project list -f csv | wc -l)" = 1 ]
X
}

step 'the quick start, with a Debian provider and a real key' quick_start
step 'a consumer on a btrfs pool' pools
step 'one process for each device' one_process_for_each_device
step 'a member of incus-admin' member_looks
step 'restart of both machines' machines_restart
step 'restart of Incus' incus_restarts
step 'reboot of the host' reboot
step 'power cut' power_cut
step 'rotation of a log by the timer' log_rotates
[ -z "$upgrade" ] || step 'upgrade of Incus in place' upgrades
step 'a revocation' revokes
step 'no AppArmor denial' no_denials
step 'destroy' destroys
[ "$failed" = 0 ]
