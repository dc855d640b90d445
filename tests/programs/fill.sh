#!/usr/bin/env bash
# Full again and again: what half of the files took can be taken by others, and an empty device is as large as the first
# time.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need python3
begin 2G

# Files of all sizes that do not compress, each known by its number, until there is no room. Prints how many there are
# and their bytes.
cat > "$HOST/fill.py" << 'PYTHON'
import errno, os, random, sys
folder, first = sys.argv[1], int(sys.argv[2])
number, total = first, 0
while True:
    content = random.Random(number).randbytes((4000, 70_000, 600_000, 3_000_000)[number % 4])
    path = os.path.join(folder, str(number))
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        if os.path.exists(path):
            os.unlink(path)
        break
    total += len(content)
    number += 1
print(number, total)
PYTHON
# Every file holds what its number says.
cat > "$HOST/judge.py" << 'PYTHON'
import os, random, sys
for name in os.listdir(sys.argv[1]):
    number = int(name)
    content = random.Random(number).randbytes((4000, 70_000, 600_000, 3_000_000)[number % 4])
    assert open(os.path.join(sys.argv[1], name), "rb").read() == content, "file " + name + " is not what was written"
PYTHON

free_bytes() { stat --file-system --format='%a * %S' "$MNT" | { read -r line; echo "$((line))"; }; }
# What was removed is given back in the background; a while is enough for what nothing has to be moved for.
settled_free() {
    local before=0 now=0 n same=0
    "$AEGISFS" sync "$MNT" > /dev/null
    for ((n = 0; n < 60 && same < 3; n++)); do
        now=$(free_bytes)
        if ((now == before)); then same=$((same + 1)); else same=0; fi
        before=$now
        sleep 1
    done
    echo "$now"
}
within_percent() { (($1 * 100 <= $2 * (100 + $3) && $2 * 100 <= $1 * (100 + $3))); }

empty=$(settled_free)
mkdir "$MNT/files"
first=0
for ((round = 0; round < $(count 3 50); round++)); do
    read -r first bytes <<< "$(within 300 python3 "$HOST/fill.py" "$MNT/files" "$first")"
    ((round == 0)) && full=$bytes
    ((bytes * 100 >= empty * 90)) || fail "round $round: only $bytes bytes fit, $empty were free"
    left=$(free_bytes)
    ((left * 100 <= empty)) || fail "round $round: $left bytes are free, but nothing fits"
    # Every other one, so that they are everywhere.
    (cd "$MNT/files" && ls | awk 'NR % 2' | xargs rm)
    kept=$(du --bytes --summarize "$MNT/files" | cut -f1)
    read -r first again <<< "$(within 300 python3 "$HOST/fill.py" "$MNT/files" "$first")"
    (((kept + again) * 100 >= full * 96)) || fail "round $round: beside $kept bytes only $again fit, $full at first"
    within 300 python3 "$HOST/judge.py" "$MNT/files"
    if ((round % 10 == 1)); then
        remount
        within 300 python3 "$HOST/judge.py" "$MNT/files"
    fi
    (cd "$MNT/files" && ls | xargs rm)
    now=$(settled_free)
    slots=$("$AEGISFS" status --json "$MNT" | grep --only-matching '"metadata_slots":{[^}]*}')
    say "round $round: $bytes, then $again beside $kept; $now of $empty free; $slots"
    if ! within_percent "$now" "$empty" 1; then
        within 60 "$AEGISFS" usage --json "$MNT"
        fail "round $round: $now bytes are free, $empty at first"
    fi
done
# The image is small again.
"$AEGISFS" sync "$MNT" > /dev/null
detach
taken=$(du --block-size=1 "$IMAGE" | cut -f1)
((taken < 300000000)) || fail "the image still takes $taken bytes"
attach
finish
