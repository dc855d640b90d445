#!/usr/bin/env bash
# kill -9 of the daemon while the cleaner runs as fast as it can, on a device that is nearly full: whatever was synced is
# there after it, and nothing that was removed comes back.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need python3
begin 512M

# Blocks of 4 KiB that tell which they are, overwritten anywhere and synced some at a time, and whole files that take the
# place of others or go. The ledger is the host's: what is about to be written stands there first, what was synced
# afterwards.
cat > "$HOST/blocks.py" << 'PYTHON'
import os, random, struct
SIZE, BLOCKS, FILES = 4096, 25_000, 220
def content(kind, number, version, size=SIZE):
    head = struct.pack("<QQQ", kind, number, version)
    return head + random.Random(repr((kind, number, version))).randbytes(size - len(head))
def size_of(number, version):
    return 5_000 + (number * 7919 + version * 104_729) % 1_600_000
PYTHON
cat > "$HOST/writer.py" << 'PYTHON'
import os, random, sys
sys.path.insert(0, sys.argv[1])
from blocks import *
folder, ledger, salt = sys.argv[2], sys.argv[3], sys.argv[4]
ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
say = lambda lines: os.write(ledger, "".join(lines).encode())
chance = random.Random(salt)
version = int(salt) * 1_000_000
names = os.open(folder, os.O_RDONLY)
big = os.open(os.path.join(folder, "blocks"), os.O_RDWR | os.O_CREAT)
while True:
    version += 1
    chosen = chance.sample(range(BLOCKS), 400)
    say("b %d %d\n" % (block, version) for block in chosen)
    for block in chosen:
        os.pwrite(big, content(1, block, version), block * SIZE)
    os.fsync(big)
    say("B %d %d\n" % (block, version) for block in chosen)
    number = chance.randrange(FILES)
    path = os.path.join(folder, "file-%d" % number)
    if chance.random() < 0.3:
        say(["d %d %d\n" % (number, version)])
        if os.path.exists(path):
            os.unlink(path)
        os.fsync(names)
        say(["D %d %d\n" % (number, version)])
    else:
        say(["f %d %d\n" % (number, version)])
        with open(path + ".new", "wb") as file:
            file.write(content(2, number, version, size_of(number, version)))
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + ".new", path)
        os.fsync(names)
        say(["F %d %d\n" % (number, version)])
PYTHON
# Each block and file is as it was synced last, or as something made it that was under way after that.
cat > "$HOST/judge.py" << 'PYTHON'
import os, sys
sys.path.insert(0, sys.argv[1])
from blocks import *
folder, ledger = sys.argv[2], sys.argv[3]
synced, begun = {}, {}
for line in open(ledger):
    what, number, version = line[0], int(line[2:].split()[0]), int(line[2:].split()[1])
    key = ("b" if what in "bB" else "f", number)
    told = (what.lower(), version)
    if what.isupper():
        synced[key] = told
        begun[key] = [other for other in begun.get(key, []) if other[1] > version]
    else:
        begun.setdefault(key, []).append(told)
possible = lambda key: begun.get(key, []) + [synced.get(key)]
with open(os.path.join(folder, "blocks"), "rb") as big:
    for block in range(BLOCKS):
        found = big.read(SIZE)
        asked = possible(("b", block))
        fits = any(found == (content(1, block, told[1]) if told else bytes(len(found))) for told in asked)
        assert fits, "block %d is none of %s" % (block, asked)
for number in range(FILES):
    path = os.path.join(folder, "file-%d" % number)
    found = open(path, "rb").read() if os.path.exists(path) else None
    expected = lambda told: None if not told or told[0] == "d" else content(2, number, told[1], size_of(number, told[1]))
    asked = possible(("f", number))
    assert any(found == expected(told) for told in asked), "file %d is none of %s" % (number, asked)
print("%d of %d blocks and files were synced" % (len(synced), BLOCKS + FILES))
PYTHON

: > "$HOST/ledger"
cleaned=0
for ((round = 0; round < $(count 10 100); round++)); do
    within 60 "$AEGISFS" clean intensity high "$MNT" > /dev/null
    timeout --kill-after=5 120 python3 "$HOST/writer.py" "$HOST" "$MNT" "$HOST/ledger" "$round" \
        < /dev/null > /dev/null 2>> "$HOST/workers.log" &
    writer=$!
    STARTED+=("$writer")
    within 60 "$AEGISFS" clean run "$MNT" > /dev/null 2>&1 &
    run=$!
    STARTED+=("$run")
    let_them_work "$HOST/ledger"
    told=$(within 60 "$AEGISFS" --json clean status "$MNT" | sed -n 's/.*"segments_cleaned":\([0-9]*\).*/\1/p')
    cleaned=$((cleaned + told))
    kill_daemon
    for pid in "$writer" "$run"; do
        kill -TERM "$pid" 2> /dev/null || true
        ends "$pid" 20 || fail "somebody does not end"
        wait "$pid" || true
        forget "$pid"
    done
    ((round % 2)) || within 60 "$AEGISFS" umount "$MNT"
    # What is on the device is looked at before anybody mends it, too.
    ((round % 5)) || { is_mounted && within 60 "$AEGISFS" umount "$MNT"; check; }
    attach
    told=$(within 200 python3 "$HOST/judge.py" "$HOST" "$MNT" "$HOST/ledger") ||
        fail "round $round, killed after $DELAY s: see above"
    say "round $round: $told, $cleaned segments were cleaned so far"
done
((cleaned > 10)) || fail "the cleaner had next to nothing to do: $cleaned segments"
finish
