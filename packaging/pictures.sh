#!/bin/sh
# Draws the pictures of the book again, from what anklume shows in its own tests. Needs what `make test` needs, and root.
set -eu
cd "$(dirname -- "$0")/.."
ANKLUME_PICTURES=$PWD/target/pictures
export ANKLUME_PICTURES
rm -rf "$ANKLUME_PICTURES"
mkdir -p "$ANKLUME_PICTURES"
sh tests/run.sh -E 'test(_is_a_picture)'
python3 packaging/picture.py 'anklume apply creates three machines and their channels' <"$ANKLUME_PICTURES/apply" >docs/pictures/apply.svg
python3 packaging/picture.py 'a commit is signed with the key of another machine' <"$ANKLUME_PICTURES/commit" >docs/pictures/commit.svg
