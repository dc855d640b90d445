#!/usr/bin/env bash
# A device that grows old: filled again and again with files of all sizes, overwritten here and there, half of them
# removed. Every round tells how fast it went, what the device wrote for it, in how many pieces the files are, and what is
# free; the last rounds are like the third, and everything is as it was written.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need python3
ROUNDS=$(count 4 50)
SLOTS_MAX=2
begin "$(count 320M 2G)"

# A file is its number, its size and what was written over it since; each of these bytes is known by its number too. The
# ledger on the host holds all that there are, and the number of the next.
cat > "$HOST/files.py" << 'PYTHON'
import json, os, random
SIZE_MIN, SIZE_MAX = 1 << 10, 32 << 20
def noise(number, size):
    return random.Random(number).randbytes(size)
def content(file):
    found = bytearray(noise(file["number"], file["size"]))
    for over in file["over"]:
        found[over["at"]:over["at"] + over["size"]] = noise(over["number"], over["size"])
    return bytes(found)
def load(ledger):
    return json.load(open(ledger)) if os.path.exists(ledger) else {"next": 0, "files": []}
PYTHON
# Removes files until half of their bytes are gone, then writes others and over them until there is no room. What met
# the end of the room is removed, because nobody knows how far it came. Prints the bytes that were written, the seconds
# that took without those in which the bytes were made up, the size of what met the end of the room,
# and the bytes that were free then.
cat > "$HOST/live.py" << 'PYTHON'
import errno, math, os, random, sys, time
sys.path.insert(0, sys.argv[1])
from files import *
folder, ledger, seed = sys.argv[2], sys.argv[3], sys.argv[4]
chance = random.Random("round " + seed)
state = load(ledger)
files, total, seconds = state["files"], 0, 0.0
path = lambda file: os.path.join(folder, str(file["number"]))
def number():
    state["next"] += 1
    return state["next"]
def timed(work):
    global seconds
    begun = time.monotonic()
    try:
        return work()
    finally:
        seconds += time.monotonic() - begun
def write(file, flags, pieces):
    global total
    handle, written = os.open(path(file), flags, 0o600), 0
    try:
        for at, piece in pieces:
            for begin in range(0, len(piece), 1 << 20):
                written += os.pwrite(handle, piece[begin:begin + (1 << 20)], at + begin)
        os.fsync(handle)
    finally:
        os.close(handle)
    assert written == sum(len(piece) for _, piece in pieces), "a write was cut short"
    # What met the end of the room may never have gone further than the kernel, and is not counted.
    total += written
def create():
    size = round(math.exp(chance.uniform(math.log(SIZE_MIN), math.log(SIZE_MAX))))
    file = {"number": number(), "size": size, "over": []}
    bytes_of_it = noise(file["number"], size)
    files.append(file)
    timed(lambda: write(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, [(0, bytes_of_it)]))
def overwrite():
    file = chance.choice(files)
    pieces = []
    for _ in range(chance.randrange(1, 9)):
        size = min(file["size"], chance.choice((100, 4096, 4096, 30_000, 300_000)))
        over = {"number": number(), "at": chance.randrange(file["size"] - size + 1), "size": size}
        file["over"].append(over)
        pieces.append((over["at"], noise(over["number"], size)))
    # The last, so that it is the one that goes where there is no room.
    files.remove(file)
    files.append(file)
    timed(lambda: write(file, os.O_WRONLY, pieces))
def remove():
    chance.shuffle(files)
    kept = sum(file["size"] for file in files) / 2
    while files and sum(file["size"] for file in files) > kept:
        os.unlink(path(files.pop()))
timed(remove)
while True:
    try:
        create()
        if chance.random() < 0.7:
            overwrite()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        room = os.statvfs(folder)
        lost = files.pop()
        if os.path.exists(path(lost)):
            os.unlink(path(lost))
        break
json.dump(state, open(ledger, "w"))
print(total, seconds, lost["size"], room.f_bavail * room.f_frsize)
PYTHON
# Files, chosen by the seed, up to so many bytes are as they were written. Prints how many bytes were read.
cat > "$HOST/judge.py" << 'PYTHON'
import sys
sys.path.insert(0, sys.argv[1])
from files import *
folder, ledger, seed, enough = sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
files, total = load(ledger)["files"], 0
assert sorted(os.listdir(folder)) == sorted(str(file["number"]) for file in files), "other files are there"
random.Random("judge " + seed).shuffle(files)
for file in files:
    if total >= enough:
        break
    found = open(os.path.join(folder, str(file["number"])), "rb").read()
    expected = content(file)
    if found != expected:
        assert len(found) == len(expected), "%s has %d bytes" % (file, len(found))
        at = next(n for n in range(len(found)) if found[n] != expected[n])
        raise SystemExit("%s is not what was written from byte %d on" % (file, at))
    total += file["size"]
print(total)
PYTHON
# What the last round did beside the third, each with its neighbours, because others use the machine too.
cat > "$HOST/compare.py" << 'PYTHON'
import statistics, sys
FEW_ROUNDS_MAX = 2.5
part, only = float(sys.argv[2]) / 100, sys.argv[3:]
rounds = [[float(word) for word in line.split()] for line in open(sys.argv[1])]
early, late = (rounds[1:4], rounds[-3:]) if len(rounds) > 6 else (rounds[2:3], rounds[-1:])
names = ["throughput", "write amplification", "extents per MiB", "reads per MiB"]
for n, name in enumerate(names):
    was, now = (statistics.median(some[n] for some in side) for side in (early, late))
    far = now < was * (1 - part) if name == "throughput" else now > was * (1 + part)
    # In a few rounds it is chance for which of them it was cleaned.
    far = far and not (only and name == "write amplification" and now < FEW_ROUNDS_MAX)
    print("%s: %.2f in the third round, %.2f in the last%s" % (name, was, now, ", TOO FAR" if far else ""))
    if far and (not only or name in only):
        raise SystemExit(name + " is not what it was")
PYTHON

# A number that a verb tells, by its path.
number() {
    within 120 "$AEGISFS" --json "${@:2}" | python3 -c 'import json, sys
told = json.load(sys.stdin)
for key in sys.argv[1].split("."):
    told = told[key]
print(told)' "$1"
}
# What the daemon had written to the device since it was mounted. For an image in memory the kernel counts nothing; then
# rows and log are told, which is all but the metadata.
device_bytes() {
    local counted rows log
    counted=$(sed -n 's/^write_bytes: //p' "/proc/$DAEMON/io")
    rows=$(number store.row_bytes status "$MNT")
    log=$(number log_bytes_written status "$MNT")
    echo "$((counted > rows + log ? counted : rows + log))"
}
free_bytes() { stat --file-system --format='%a * %S' "$MNT" | { read -r line; echo "$((line))"; }; }
seconds() { date +%s.%N; }

"$AEGISFS" sync "$MNT" > /dev/null
empty=$(free_bytes)
mkdir "$MNT/files"
for ((round = 0; round < ROUNDS; round++)); do
    before=$(device_bytes)
    read -r bytes spent lost room <<< "$(within "$(count 200 1800)" python3 "$HOST/live.py" "$HOST" "$MNT/files" "$HOST/ledger" "$round")"
    [[ -n ${room:-} ]] || fail "round $round: see above"
    begun=$(seconds)
    within 120 "$AEGISFS" sync "$MNT" > /dev/null
    ended=$(seconds)
    # What is cleaned for this round's sake after it is counted, too.
    now=0
    for ((n = 0; n < 20; n++)); do
        written=$now
        now=$(($(device_bytes) - before))
        ((now > written)) || break
        sleep 0.5
    done
    left=$(free_bytes)
    ((room <= lost + empty / 20)) ||
        fail "round $round: no room for a file of $lost bytes, but $room are free"
    # That file is gone again, and everything is cleaned.
    ((left <= lost + empty / 10)) || fail "round $round: no room for a file of $lost bytes, but $left are free after a sync"
    reclaimable=$(number reclaimable_bytes clean status "$MNT")
    cleaned=$(number segments_cleaned clean status "$MNT")
    moved=$(number moved_bytes clean status "$MNT")
    # Nothing is in a cache then, nor in the log only, which is not counted.
    remount
    echo 3 > /proc/sys/vm/drop_caches
    extents=$(number references usage "$MNT")
    logical=$(number logical_bytes usage "$MNT")
    reads=$(number store.device_reads status "$MNT")
    read_bytes=$(within 300 python3 "$HOST/judge.py" "$HOST" "$MNT/files" "$HOST/ledger" "$round" "$((round + 1 < ROUNDS ? $(count 60000000 400000000) : 1 << 40))") ||
        fail "round $round: see above"
    reads=$(($(number store.device_reads status "$MNT") - reads))
    python3 -c 'import sys
bytes, spent, begun, ended, written, extents, logical, reads, read = map(float, sys.argv[1:])
mib = 1 << 20
print("%.1f %.3f %.2f %.2f" % (bytes / mib / (spent + ended - begun), written / bytes, extents / (logical / mib), reads / (read / mib)))' \
        "$bytes" "$spent" "$begun" "$ended" "$written" "$extents" "$logical" "$reads" "$read_bytes" >> "$HOST/rounds"
    read -r rate times pieces asked <<< "$(tail -n 1 "$HOST/rounds")"
    say "round $round: $((bytes >> 20)) MiB at $rate MiB/s, written $times times; $pieces extents and $asked device reads" \
        "per MiB; $((left >> 20)) MiB free, $((reclaimable >> 20)) more to be had; $cleaned segments cleaned," \
        "$((moved >> 20)) MiB moved"
done

rm -r "$MNT/files"
within 300 "$AEGISFS" clean run "$MNT" > /dev/null
# What was removed is given back in the background. Metadata that had to grow keeps its slots, which are of 4 MiB here; on
# the long run's device they are less than the one percent.
missing_max=$((empty / 100 > SLOTS_MAX * 4194304 ? empty / 100 : SLOTS_MAX * 4194304))
for ((n = 0; n < 60; n++)); do
    within 60 "$AEGISFS" sync "$MNT" > /dev/null
    now=$(free_bytes)
    ((now + missing_max < empty)) || break
    sleep 1
done
((now + missing_max >= empty)) || fail "$now bytes are free without files, $empty at first: $("$AEGISFS" --json usage "$MNT")"
say "$now bytes are free without files, $empty at first"
# A few rounds on a machine that others use say little about the time.
if [[ -n $LONG ]]; then
    python3 "$HOST/compare.py" "$HOST/rounds" 20 || fail "it has aged"
else
    python3 "$HOST/compare.py" "$HOST/rounds" 50 "write amplification" || fail "it has aged"
fi
finish
