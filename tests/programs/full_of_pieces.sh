#!/usr/bin/env bash
# A file whose every byte was written in pieces of 4 KiB, here and there, until nothing more fits; then the daemon is
# killed. What was synced is there, and removing, truncating and cleaning work although there is no room at all.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need python3
begin 512M

cat > "$HOST/pieces.py" << 'PYTHON'
import errno, os, random, struct, sys
SIZE = 4096
def content(block, version):
    head = struct.pack("<QQ", block, version)
    return head + random.Random(repr((block, version))).randbytes(SIZE - len(head))
# Overwrites blocks until nothing fits any more, or so many bytes are written. What is about to be written stands in the
# ledger first, what was synced afterwards.
def write(path, ledger, blocks, first, most):
    big = os.open(path, os.O_RDWR | os.O_CREAT)
    out = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    say = lambda lines: os.write(out, "".join(lines).encode())
    chance, version, written = random.Random(first), first, 0
    # Each block once, in some order, then any.
    order = list(range(blocks))
    chance.shuffle(order)
    while written < most:
        version += 1
        chosen = [order.pop() if order else chance.randrange(blocks) for _ in range(64)]
        say("b %d %d\n" % (block, version) for block in chosen)
        try:
            for block in chosen:
                os.pwrite(big, content(block, version), block * SIZE)
            os.fsync(big)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            print(written, "full")
            return
        say("B %d %d\n" % (block, version) for block in chosen)
        written += len(chosen) * SIZE
    print(written, "written")
# Each block is as it was synced last, or as it was about to be written after that.
def judge(path, ledger):
    synced, begun = {}, {}
    for line in open(ledger):
        what, block, version = line[0], *map(int, line[2:].split())
        if what == "B":
            synced[block] = version
            begun[block] = [other for other in begun.get(block, []) if other > version]
        else:
            begun.setdefault(block, []).append(version)
    blocks = 0
    with open(path, "rb") as big:
        while found := big.read(SIZE):
            asked = begun.get(blocks, []) + [synced.get(blocks)]
            fits = any(found == (content(blocks, v) if v is not None else bytes(len(found))) for v in asked)
            assert fits, "block %d is none of %s" % (blocks, asked)
            blocks += 1
    print(len(synced), "of", blocks, "blocks were synced")
if sys.argv[1] == "write":
    write(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:7]))
else:
    judge(*sys.argv[2:4])
PYTHON

free_bytes() { stat --file-system --format='%a * %S' "$MNT" | { read -r line; echo "$((line))"; }; }
pieces() { within 280 python3 "$HOST/pieces.py" "$@"; }

empty=$(free_bytes)
half=$((empty / 2 / 4096))
version=0
for ((round = 0; round < $(count 1 20); round++)); do
    : > "$HOST/ledger"
    # As large as the device: it gets full on the way, and every block of it came alone.
    told=$(pieces write "$MNT/big" "$HOST/ledger" "$((empty / 4096))" "$((version += 1000000))" $((1 << 40)))
    [[ $told == *full ]] || fail "round $round: the device never got full: $told"
    left=$(free_bytes)
    ((left * 100 <= empty)) || fail "round $round: $left of $empty bytes are free, but nothing fits"
    kill_daemon
    is_mounted && within 60 "$AEGISFS" umount "$MNT"
    ((round % 4)) || check
    attach
    judged=$(pieces judge "$MNT/big" "$HOST/ledger")
    say "round $round: $told; $judged"
    # With no room at all: cleaning, a smaller file, and then a name less.
    within 120 "$AEGISFS" clean run "$MNT" > /dev/null
    within 60 truncate --size "$((half * 4096))" "$MNT/big"
    within 60 "$AEGISFS" sync "$MNT" > /dev/null
    # Now there is room to overwrite what is left, as often as one likes.
    told=$(pieces write "$MNT/big" "$HOST/ledger" "$half" "$((version += 1000000))" "$empty")
    [[ $told == *written ]] || fail "round $round: half of the device is taken, and yet: $told"
    judged=$(pieces judge "$MNT/big" "$HOST/ledger")
    say "round $round: $judged after overwriting half of it"
    within 60 rm "$MNT/big"
    within 60 "$AEGISFS" sync "$MNT" > /dev/null
done
finish
