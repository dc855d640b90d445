#!/usr/bin/env bash
# Disks fail while programs write, as many as the redundancy carries: nobody is told, the others go on, and once they are back
# they are brought up to date, and as many others may be away.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need python3 nbdkit nbdfuse mountpoint
prepare

# Files of all sizes, some overwritten and some removed, each synced; the ledger has the sum of what was.
cat > "$HOST/writer.py" << 'PYTHON'
import hashlib, os, random, sys
folder, ledger, salt = sys.argv[1], open(sys.argv[2], "a", buffering=1), sys.argv[3]
chance = random.Random(salt)
for n in range(10_000_000):
    name = "file-%d" % chance.randrange(150)
    path = os.path.join(folder, name)
    if chance.random() < 0.1 and os.path.exists(path):
        os.unlink(path)
        ledger.write("%s gone\n" % name)
        continue
    data = chance.randbytes(chance.choice([100, 5_000, 70_000, 1_500_000]))
    with open(path + ".new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    ledger.write("%s %s\n" % (name, hashlib.sha256(data).hexdigest()))
PYTHON
cat > "$HOST/judge.py" << 'PYTHON'
import hashlib, os, sys
folder, ledger = sys.argv[1], dict(line.split() for line in open(sys.argv[2]) if line.endswith("\n"))
for name, expected in ledger.items():
    path = os.path.join(folder, name)
    found = hashlib.sha256(open(path, "rb").read()).hexdigest() if os.path.exists(path) else "gone"
    if found != expected:
        sys.exit("%s is %s, not %s" % (name, found, expected))
print(len(ledger), "files are as they were written")
PYTHON

work() {
    python3 "$HOST/writer.py" "$MNT" "$HOST/ledger" "$1" >> "$HOST/workers.log" 2>&1 &
    WORKER=$!
    STARTED+=("$WORKER")
    touch "$HOST/ledger"
    let_them_work "$HOST/ledger"
}

# The writer ends with a whole line in its ledger, by being told between two of them at the latest.
rest() {
    is_alive "$WORKER" || fail "the writer was told of an error: $(tail -n 5 "$HOST/workers.log")"
    kill -TERM "$WORKER"
    ends "$WORKER" 20 || fail "the writer does not end"
    forget "$WORKER"
    # What it was at may be there or not.
    sed -i '$ { /[0-9a-fe]$/!d }' "$HOST/ledger"
}

judge() { within 120 python3 "$HOST/judge.py" "$MNT" "$HOST/ledger.sure"; }

# Names that were touched by the last line, or by what came after it, are nobody's to judge.
make_sure() {
    within 60 "$AEGISFS" sync "$MNT"
    (cd "$MNT" && for file in file-*; do
        [[ $file == *.new ]] || echo "$file $(sha256sum < "$file" | cut -d ' ' -f 1)"
    done) > "$HOST/now"
    python3 - "$HOST/ledger" "$HOST/now" "$HOST/ledger.sure" << 'PYTHON'
import sys
lines = [line.split() for line in open(sys.argv[1])]
told, now = dict(lines), dict(line.split() for line in open(sys.argv[2]))
wrong = [name for name in told if now.get(name, "gone") != told[name]]
# One was under way when the writer ended.
assert len(wrong) <= 1, wrong
with open(sys.argv[3], "w") as out:
    for name, sum in now.items():
        out.write("%s %s\n" % (name, sum))
PYTHON
}

# Disks of such a size make a pool. Those of VICTIMS fail one after the other while somebody writes; then those of OTHERS are
# away.
scene() {
    local redundancy=$1 bytes=$2 names=$3 victims=$4 others=$5 name status
    IMAGES=()
    for name in $names; do
        failing_disk "$name" "$bytes"
        IMAGES+=("$DISK")
    done
    within 60 "$AEGISFS" format --redundancy "$redundancy" "${IMAGES[@]}" > /dev/null
    rm -f "$HOST/ledger"
    attach
    work "$redundancy-$victims"
    for name in $victims; do
        touch "$HOST/fail-$name"
        let_them_work "$HOST/ledger"
        let_them_work "$HOST/ledger"
    done
    rest
    status=0
    timeout 60 "$AEGISFS" status "$MNT" > "$FOLDER/status" || status=$?
    [[ $status == 3 ]] || fail "status ended with $status: $(cat "$FOLDER/status")"
    (($(grep -c "  out " "$FOLDER/status") == $(wc -w <<< "$victims"))) ||
        fail "not all of '$victims' are out: $(cat "$FOLDER/status")"
    make_sure
    judge
    # They are back, under the mount or at the next one, and somebody writes while they are brought up to date.
    [[ $6 == mounted ]] || detach
    for name in $victims; do rm "$HOST/fail-$name"; done
    [[ $6 == mounted ]] || attach
    work "$redundancy-$victims-back"
    until_whole
    rest
    make_sure
    judge
    detach
    check
    # The others are not touched meanwhile, or both sides would have gone on without the other.
    for name in $others; do touch "$HOST/fail-$name"; done
    within 60 "$AEGISFS" mount -o ro,degraded "$FOLDER/${victims%% *}/nbd" "$MNT"
    DAEMON=$({ timeout 60 "$AEGISFS" --json status "$MNT" || true; } | sed -n 's/.*"pid":\([0-9]*\).*/\1/p')
    judge
    detach
    for name in $others; do rm "$HOST/fail-$name"; done
    attach
    judge
    detach
    say "$redundancy: $(wc -l < "$HOST/ledger.sure") files outlived the loss of '$victims', and then of '$others'"
}

rounds=$(count 1 5)
for ((round = 0; round < rounds; round++)); do
    scene mirror:2 512M "one$round two$round" "two$round" "one$round" remounted
    scene mirror:2 512M "three$round four$round" "three$round" "four$round" mounted
    scene ec:4+2 256M "a$round b$round c$round d$round e$round f$round" "b$round e$round" "a$round c$round" mounted
done
attach
finish
