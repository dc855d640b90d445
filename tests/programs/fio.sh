#!/usr/bin/env bash
# fio writes blocks with checksums in them and reads them back: buffered, direct, mapped; and after a remount.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need fio
begin "$(count 2G 16G)"

SIZE=$(count 64m 2g)
run() {
    local name=$1
    shift
    (cd "$HOST" && within "$(count 100 1800)" fio --name="$name" --directory="$MNT" --size="$SIZE" --randrepeat=1 \
        --randseed=17 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --output="$HOST/fio.log" "$@") ||
        fail "$name: $(tail -n 20 "$HOST/fio.log")"
}
every() {
    run stream --rw=write --bs=128k --ioengine=psync "$@"
    run buffered --rw=randwrite --bs=4k --ioengine=psync --fsync=1000 "$@"
    run sizes --rw=randwrite --bssplit=512/10:4k/40:7k/20:64k/30 --bs_unaligned --ioengine=psync "$@"
    run direct --rw=randwrite --bs=8k --direct=1 --ioengine=libaio --iodepth=8 "$@"
    run direct-stream --rw=write --bs=1m --direct=1 --ioengine=psync "$@"
    run mapped --rw=randwrite --bs=4k --ioengine=mmap "$@"
    run mixed --rw=randrw --rwmixread=40 --bs=4k --ioengine=psync --numjobs=4 --size="$(count 16m 500m)" "$@"
}
every --do_verify=1
remount
every --verify_only
finish
