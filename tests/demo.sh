#!/bin/sh
# Shows all main features, in a temporary folder that is removed afterwards: tests/demo.sh ANKLUME-BINARY
#
# Needs no Incus, no display and no key of yours: it creates its own keyring, clipboard and portal. Each step
# shows the command, its output, and its exit code; an unexpected exit code ends the demo with 1.
set -eu

binary=$(realpath -- "${1:?usage: tests/demo.sh ANKLUME-BINARY}")
fixtures=$(cd "$(dirname -- "$0")" && pwd)/fixtures
# The last step's server, while it is running.
server=
# Short, because gpg's agent creates a socket in it, and a socket path may be at most 107 bytes long.
folder=$(mktemp -d /tmp/anklume-demo.XXXXXX)

clean() {
    status=$?
    trap - EXIT
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    if command -v gpgconf >/dev/null; then gpgconf --homedir "$folder/keys" --kill all 2>/dev/null || true; fi
    cd /
    rm -rf -- "$folder"
    exit "$status"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

mkdir "$folder/bin" "$folder/home" "$folder/desk"
mkdir -m 0700 "$folder/keys" "$folder/run" "$folder/portal"
ln -s "$binary" "$folder/bin/anklume"
PATH=$folder/bin:$PATH
export PATH
# Touch nothing that belongs to the user: not the display's clipboard, the keyring or the home folder.
unset DISPLAY WAYLAND_DISPLAY
export LC_ALL=C.UTF-8
export HOME="$folder/home" GNUPGHOME="$folder/keys" XDG_RUNTIME_DIR="$folder/run" ANKLUME_MCP_PORTAL="$folder/portal"
cd "$folder/desk"

if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
    bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m')
else
    bold='' dim='' plain=''
fi

# Prints a heading and a short introduction.
say() {
    printf '\n%s%s%s\n' "$bold" "$1" "$plain"
    shift
    [ $# = 0 ] || printf '%s\n' "$@"
}

# Runs a command line as a reader would type it: EXPECTED-EXIT-CODE COMMAND.
try() {
    printf '\n%s$ %s%s\n' "$bold" "$2" "$plain"
    code=0
    sh -c "$2" >"$folder/output" 2>&1 </dev/null || code=$?
    cat "$folder/output"
    # A tool's output is printed unchanged, and often does not end with a newline.
    [ -z "$(tail -c 1 "$folder/output")" ] || echo
    printf '%sexit code %s%s\n' "$dim" "$code" "$plain"
    if [ "$code" != "$1" ]; then
        printf '\ndemo: this should have ended with %s\n' "$1" >&2
        exit 1
    fi
}

printf '%s\n' \
    'anklume lets machines do small things for each other (sign a file, share a clipboard, hand over a document) without a' \
    'network between them. You declare the services in infra.yml, the file that also creates the machines.' \
    "All of this happens in $folder and is gone afterwards."

say '1. Declare' \
    'Three machines, each in its own domain. vault-signer holds a key: it signs for work-dev and pro-dev, and shows its' \
    'clipboard only to work-dev. Everything else is refused.'
cat "$fixtures/quick-start.yml" "$fixtures/quick-start-pro.yml" >infra.yml
try 0 'cat infra.yml'

say '2. Check the file and write the Ansible files' \
    'anklume checks the whole file before it writes anything. The proxy devices are the only connection between the two' \
    'machines: a Unix socket for that pair, no port, no network.'
try 0 'anklume sync'
try 0 'cat host_vars/vault-signer.yml'
say 'A second run changes nothing. A typing error is reported with its location.'
try 0 'anklume sync'
try 1 'sed "s/work-dev, pro-dev/work-dev, pro-dve/" infra.yml > slip.yml; anklume sync --infra slip.yml'

say '3. May this machine use that service?' 'Exit code 0 means yes and 1 means no, so scripts can use it.'
try 0 'anklume policy list'
try 0 'anklume policy check --caller pro-dev --service file_sign'
try 1 'anklume policy check --caller pro-dev --service clipboard'

say '4. Serve' \
    'A server speaks MCP, with one JSON message per line. Here, each command starts one on this computer; `-i vault-signer`' \
    'does the same in a machine.'
try 0 'anklume mcp list'

say '5. Sign' 'The key stays with the server; only the file and its signature travel. The demo creates a temporary key.'
if command -v gpg >/dev/null; then
    try 0 'gpg --batch --quiet --passphrase "" --quick-generate-key "Demo <demo@example.invalid>" ed25519 sign 1d'
    gpg --batch --quiet --check-trustdb 2>/dev/null
    echo 'I owe you a coffee.' >letter.txt
    try 0 'anklume mcp call gpg_sign data=@letter.txt > letter.txt.asc'
    try 0 'cat letter.txt.asc'
    try 0 'gpg --verify letter.txt.asc letter.txt'
    try 1 'echo "I owe you two." > letter.txt; gpg --verify letter.txt.asc letter.txt'
else
    echo '(left out: gpg is not installed; on Debian it is the package gnupg)'
fi

say '6. Share a clipboard'
try 0 "anklume mcp call clipboard_set '{\"content\": \"bonjour\"}'"
try 0 'anklume mcp call clipboard_get'

say '7. Send a file, and fetch it again'
echo 'minutes of the meeting' >minutes.txt
try 0 'anklume mcp call file_accept path=minutes.txt data=@minutes.txt'
try 0 'anklume mcp call file_provide path=minutes.txt | base64 -d'
try 1 'anklume mcp call file_provide path=../../etc/passwd'

say '8. The same by hand' 'A one-line test of a deployment: one message in, one answer out.'
try 0 "echo '{\"jsonrpc\":\"2.0\",\"method\":\"tools/list\",\"id\":1,\"params\":{}}' | anklume mcp serve | cut -c 1-200"

say '9. Two consumers, each with its own socket' \
    'The server of vault-signer creates a socket for each consumer in its services file; the socket identifies the caller.' \
    'Between machines, Incus forwards it; here, each consumer has it in a separate folder. The log lists every call.'
mkdir "$folder/mcp" "$folder/work-dev" "$folder/pro-dev"
ANKLUME_AUDIT_LOG=$folder/audit.jsonl
export ANKLUME_AUDIT_LOG
try 0 'anklume policy export --machine vault-signer > services.json'
printf '\n%s$ %s%s\n' "$bold" 'anklume mcp serve --listen ../mcp --services services.json &' "$plain"
anklume --quiet mcp serve --listen ../mcp --services services.json </dev/null &
server=$!
until anklume mcp status --listen ../mcp >/dev/null 2>&1; do
    kill -0 "$server" || exit 1
    sleep 0.1
done
try 0 'anklume mcp status --listen ../mcp'
ln -s ../mcp/work-dev.sock "$folder/work-dev/vault-signer.sock"
ln -s ../mcp/pro-dev.sock "$folder/pro-dev/vault-signer.sock"
say 'In work-dev:'
export ANKLUME_SOCKET_DIR="$folder/work-dev"
try 0 'anklume mcp list -i vault-signer'
if command -v gpg >/dev/null; then
    try 0 'anklume mcp call -i vault-signer file_sign data=@minutes.txt > minutes.txt.asc'
    try 0 'gpg --verify minutes.txt.asc minutes.txt'
fi
try 0 'anklume mcp call -i vault-signer clipboard'
say 'In pro-dev, which may only sign:'
export ANKLUME_SOCKET_DIR="$folder/pro-dev"
try 3 'anklume mcp call -i vault-signer clipboard'
unset ANKLUME_SOCKET_DIR
say 'On the host: the reason, and the log.'
try 0 'anklume policy explain --caller pro-dev --service clipboard'
try 0 'anklume audit show'
try 0 'anklume audit verify'
kill "$server"
wait "$server"
server=

say 'The demo is complete. It now removes the temporary folder and its key.'
