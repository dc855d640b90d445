#!/usr/bin/env bash
# kill -9 of the daemon under SQLite: every transaction whose commit had returned is there after it.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need python3
begin 1G

WRITERS=3
# Synchronous as SQLite's documentation asks for it, where a commit shall be durable. The ledger is the host's.
cat > "$HOST/writer.py" << 'PYTHON'
import os, sqlite3, sys
path, ledger, writer, setting = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]
ledger = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
base = sqlite3.connect(path, isolation_level=None)
base.execute("pragma busy_timeout=60000")
for pragma in setting:
    base.execute("pragma " + pragma)
n = base.execute("select coalesce(max(n), 0) from rows where writer=?", (writer,)).fetchone()[0]
while True:
    n += 1
    base.execute("begin immediate")
    base.execute("insert into rows(writer, n, body) values(?, ?, ?)", (writer, n, os.urandom(n * 41 % 3000)))
    base.execute("update sums set n = n + 1")
    base.execute("commit")
    # SQLite takes a directory that cannot be opened to be synced for one that needs no sync (unixDelete), so a commit that
    # met the kill there returned without one. Whoever still answers afterwards answered then, too.
    os.statvfs(path)
    os.write(ledger, b"%d %d\n" % (writer, n))
PYTHON
cat > "$HOST/judge.py" << 'PYTHON'
import sqlite3, sys
base, ledger = sqlite3.connect(sys.argv[1], isolation_level=None), sys.argv[2]
found = base.execute("pragma integrity_check").fetchone()[0]
assert found == "ok", found
rows = set(base.execute("select writer, n from rows"))
sums = base.execute("select n from sums").fetchone()[0]
assert sums == len(rows), "%d rows, but counted were %d" % (len(rows), sums)
acknowledged = {tuple(map(int, line.split())) for line in open(ledger)}
lost = sorted(acknowledged - rows)
assert not lost, "%d of %d acknowledged transactions are lost, the first is %s" % (len(lost), len(acknowledged), lost[0])
for writer in {w for w, _ in rows}:
    numbers = {n for w, n in rows if w == writer}
    assert numbers == set(range(1, len(numbers) + 1)), "writer %d has gaps" % writer
print("%d acknowledged, %d there" % (len(acknowledged), len(rows)))
PYTHON

MODES=(
    "journal_mode=wal synchronous=full"
    "journal_mode=delete synchronous=extra"
    "journal_mode=wal synchronous=full mmap_size=268435456"
)
for n in "${!MODES[@]}"; do
    read -ra setting <<< "${MODES[n]}"
    timeout 60 python3 - "$MNT/$n.db" "${setting[@]}" << 'PYTHON'
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], isolation_level=None)
for pragma in sys.argv[2:]:
    base.execute("pragma " + pragma)
base.execute("create table rows(writer, n, body, primary key(writer, n))")
base.execute("create table sums(n)")
base.execute("insert into sums values(0)")
PYTHON
    : > "$HOST/ledger.$n"
done

for ((round = 0; round < $(count 3 20); round++)); do
    pids=()
    # All bases at once: what one of them syncs is not all there is.
    for n in "${!MODES[@]}"; do
        read -ra setting <<< "${MODES[n]}"
        for ((writer = 0; writer < WRITERS; writer++)); do
            timeout --kill-after=5 120 python3 "$HOST/writer.py" "$MNT/$n.db" "$HOST/ledger.$n" "$writer" \
                "${setting[@]}" < /dev/null > /dev/null 2>> "$HOST/workers.log" &
            pids+=($!)
            STARTED+=($!)
        done
    done
    let_them_work "$HOST"/ledger.*
    kill_daemon
    sleep 0.5
    for pid in "${pids[@]}"; do
        # It was killed by a mapping that is gone, or stopped at an error, or takes the error for a lock and waits.
        kill -TERM "$pid" 2> /dev/null || true
        ends "$pid" 20 || fail "a writer does not end"
        wait "$pid" && fail "a writer ended as if it had finished"
        forget "$pid"
    done
    # Every other time the dead mount is taken over.
    ((round % 2)) || within 60 "$AEGISFS" umount "$MNT"
    attach
    for n in "${!MODES[@]}"; do
        told=$(within 200 python3 "$HOST/judge.py" "$MNT/$n.db" "$HOST/ledger.$n") ||
            fail "round $round, killed after $DELAY s, ${MODES[n]}: see above"
        say "round $round, ${MODES[n]}: $told"
    done
done
finish
