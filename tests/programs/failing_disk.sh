#!/usr/bin/env bash
# A disk of a mirror fails while programs write: nobody is told, the other one goes on, and once the first is back it is
# brought up to date and holds everything alone.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need python3 nbdkit nbdfuse mountpoint
prepare

for name in one two; do
    failing_disk "$name" 768M
    IMAGES+=("$DISK")
done
within 60 "$AEGISFS" format --redundancy mirror:2 "${IMAGES[@]}" > /dev/null
attach

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

rounds=$(count 1 5)
for ((round = 0; round < rounds; round++)); do
    for victim in two one; do
        work "$round-$victim"
        touch "$HOST/fail-$victim"
        let_them_work "$HOST/ledger"
        let_them_work "$HOST/ledger"
        rest
        status=0
        timeout 60 "$AEGISFS" status "$MNT" > "$FOLDER/status" || status=$?
        [[ $status == 3 ]] || fail "status ended with $status: $(cat "$FOLDER/status")"
        grep -q "  out " "$FOLDER/status" || fail "no device is out: $(cat "$FOLDER/status")"
        make_sure
        judge
        detach
        rm "$HOST/fail-$victim"
        # It is back, and others write while it is brought up to date.
        attach
        work "$round-$victim-back"
        until_whole
        rest
        make_sure
        judge
        detach
        check
        # Whoever was away holds everything alone. The other one is not touched meanwhile, or both would have gone on alone.
        other=one
        [[ $victim == one ]] && other=two
        touch "$HOST/fail-$other"
        within 60 "$AEGISFS" mount -o ro,degraded "$FOLDER/$victim/nbd" "$MNT"
        DAEMON=$({ timeout 60 "$AEGISFS" --json status "$MNT" || true; } | sed -n 's/.*"pid":\([0-9]*\).*/\1/p')
        judge
        detach
        rm "$HOST/fail-$other"
        attach
    done
done
finish
