#!/usr/bin/env bash
# A restic repository on the mount: two backups, everything read and verified, restored and compared.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need restic
begin "$(count 1G 4G)"

export RESTIC_REPOSITORY=$MNT/repository RESTIC_PASSWORD=known RESTIC_CACHE_DIR=$HOST/cache
from=$HOST/from
make_tree "$from"
# It names files in JSON, where bytes that are no text have no place.
rm "$from/"$'\xff\xfe'
if [[ -n $LONG ]]; then noise 4 1000000000 > "$from/large"; fi
restic_does() { within "$(count 120 1800)" restic --quiet "$@"; }
back_up() { (cd "$HOST" && restic_does backup --tag "$1" from); }
restored() {
    rm -rf "$3"
    restic_does restore latest --tag "$1" --target "$3"
    same_tree "$2" "$3/from"
}

restic_does init
back_up first
cp -a "$from" "$HOST/before"
change_tree "$from"
back_up second
restic_does check --read-data
restored first "$HOST/before" "$HOST/restored"
restored second "$from" "$HOST/restored"
restored second "$from" "$MNT/restored"

remount
restic_does check --read-data
restic_does forget --prune --tag first --keep-last 0 --keep-tag second
restic_does check --read-data
restored second "$from" "$HOST/restored"
finish
