#!/usr/bin/env bash
# A borg repository on the mount: two backups, everything read and verified, restored and compared.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need borg
begin "$(count 1G 4G)"

export BORG_BASE_DIR=$HOST/borg BORG_REPO=$MNT/repository BORG_PASSPHRASE=known
export BORG_RELOCATED_REPO_ACCESS_IS_OK=yes LANG=C.UTF-8
from=$HOST/from
make_tree "$from"
if [[ -n $LONG ]]; then noise 4 1000000000 > "$from/large"; fi
borg_does() { within "$(count 120 1800)" borg "$@"; }
back_up() { (cd "$HOST" && borg_does create --numeric-ids --sparse "::$1" from); }
restored() {
    rm -rf "$HOST/restored" && mkdir "$HOST/restored"
    (cd "$HOST/restored" && borg_does extract --numeric-ids --sparse "::$1")
    same_tree "$2" "$HOST/restored/from"
}

borg_does init --encryption=repokey-blake2 2> /dev/null
back_up first
cp -a "$from" "$HOST/before"
change_tree "$from"
back_up second
borg_does check --verify-data
restored first "$HOST/before"
restored second "$from"
# Restoring onto the mount, too.
mkdir "$MNT/restored"
(cd "$MNT/restored" && borg_does extract --numeric-ids --sparse ::second)
same_tree "$from" "$MNT/restored/from"

remount
borg_does check --verify-data
borg_does delete ::first
borg_does compact
borg_does check --verify-data
restored second "$from"
finish
