#!/usr/bin/env bash
# tar and rsync carry everything over: holes, links, owners, times, extended attributes, ACLs.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need tar rsync setfattr setfacl
begin 1G

from=$HOST/from
make_tree "$from"
attributes() {
    setfattr -n user.note -v "$2" "$1/numbers"
    setfattr -n user.empty "$1/empty"
    setfattr -n user.large -v "0x$(head -c 3000 "$1/noise" | od -An -v -tx1 | tr -d ' \n')" "$1/noise"
    setfattr -n trusted.note -v "$2" "$1/many"
    setfattr -n security.capability -v 0x0000000200240000000000000000000000000000 "$1/numbers"
    setfacl -m "u:1001:r,g:1002:rwx,m::rw" "$1/numbers"
    setfacl -m "d:u:1001:rwx,d:g::rx,u:1003:x" "$1/many"
    mknod "$1/many/null" c 1 3 2> /dev/null || true
}
attributes "$from" first

is_sparse() {
    local blocks
    blocks=$(stat --format=%b "$1/sparse")
    ((blocks * 512 < 10000000)) || fail "$1/sparse takes $blocks blocks, as if it had no holes"
}

# There with tar, and back to the host.
carry() {
    mkdir -p "$2"
    within 120 tar -C "$1" --create --sparse --acls --xattrs --xattrs-include='*' --numeric-owner . |
        within 120 tar -C "$2" --extract --preserve-permissions --same-owner --acls --xattrs --xattrs-include='*' \
            --numeric-owner
    # tar carries no finer time than it is told to, unless the format is pax.
    same_tree "$1" "$2" --modify-window=1
    is_sparse "$2"
}
carry "$from" "$MNT/tar"
carry "$MNT/tar" "$HOST/back"
within 60 tar -C "$from" --create --format=pax --file "$MNT/pax.tar" .
within 60 tar -C "$from" --compare --file "$MNT/pax.tar"

to=$MNT/rsync
carried() {
    # Two changes of the same second differ in their nanoseconds.
    within 300 rsync -aHAX --numeric-ids --modify-window=-1 "$@" "$from/" "$to/"
    same_tree "$from" "$to"
    say "rsync $*: agrees"
}
carried
printf more >> "$from/numbers"
printf x | dd of="$from/noise" bs=1 seek=1000 conv=notrunc status=none
attributes "$from" second
carried --inplace --no-whole-file
change_tree "$from"
carried --delete
is_sparse "$MNT/tar"
rm "$from/sparse"
truncate -s 80M "$from/sparse"
printf x | dd of="$from/sparse" bs=1 seek=70000000 conv=notrunc status=none
carried -S
is_sparse "$to"
truncate -s 40M "$from/sparse"
noise 3 2000000 | dd of="$from/sparse" bs=64K seek=100 conv=notrunc status=none
carried -S --inplace --delete
is_sparse "$to"
setfattr -x user.note "$from/numbers"
setfacl -b "$from/numbers"
chown -h 77:88 "$from/many/symlink"
carried --append-verify --delete-after --fuzzy
carried --link-dest="$MNT/tar" --delay-updates --checksum
# From the mount to the mount, and from the mount to the host.
within 300 rsync -aHAXS --numeric-ids "$to/" "$MNT/again/"
same_tree "$to" "$MNT/again"
within 300 rsync -aHAXS --numeric-ids "$to/" "$HOST/again/"
same_tree "$from" "$HOST/again"

remount
same_tree "$from" "$to"
same_tree "$HOST/back" "$MNT/tar" --modify-window=1
is_sparse "$to"
finish
