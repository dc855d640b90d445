#!/usr/bin/env bash
# SQLite with its journal in each mode, four processes that write to one base, and what they wrote counted.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need python3 sqlite3
begin 1G

WRITERS=4
TRANSACTIONS=$(count 150 5000)

cat > "$HOST/writer.py" << 'PYTHON'
import hashlib, sqlite3, sys
path, writer, count, setting = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
base = sqlite3.connect(path, isolation_level=None)
base.execute("pragma busy_timeout=120000")
for pragma in setting:
    base.execute("pragma " + pragma)
for n in range(count):
    body = b"".join(hashlib.sha256(b"%d %d %d" % (writer, n, i)).digest() for i in range(n * 37 % 120 + 1))
    # Taken for writing at once: a reader that wants to write may not wait for another in the same place.
    base.execute("begin immediate")
    base.execute("insert into rows(writer, n, body) values(?, ?, ?)", (writer, n, body))
    base.execute("update sums set n = n + 1, bytes = bytes + ?", (len(body),))
    if n >= 20 and n % 3 == 0:
        gone = base.execute("select length(body) from rows where writer=? and n=?", (writer, n - 20)).fetchone()
        base.execute("delete from rows where writer=? and n=?", (writer, n - 20))
        base.execute("update sums set n = n - 1, bytes = bytes - ?", gone)
    base.execute("commit")
PYTHON

cat > "$HOST/judge.py" << 'PYTHON'
import hashlib, sqlite3, sys
path, writers, count, setting = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
base = sqlite3.connect(path, isolation_level=None)
for pragma in setting:
    base.execute("pragma " + pragma)
found = base.execute("pragma integrity_check").fetchone()[0]
assert found == "ok", found
gone = {n - 20 for n in range(20, count) if n % 3 == 0}
rows = {(w, n): body for w, n, body in base.execute("select writer, n, body from rows")}
assert set(rows) == {(w, n) for w in range(writers) for n in range(count) if n not in gone}, "rows are missing"
for (w, n), body in rows.items():
    want = b"".join(hashlib.sha256(b"%d %d %d" % (w, n, i)).digest() for i in range(n * 37 % 120 + 1))
    assert body == want, "row %d of writer %d has other bytes" % (n, w)
sums = base.execute("select n, bytes from sums").fetchone()
assert sums == (len(rows), sum(map(len, rows.values()))), sums
PYTHON

run_mode() {
    local mode=$1 base=$MNT/$1.db w pids=()
    shift
    # The size of the mapping and the like belong to a connection, so each of them sets all.
    within 60 sqlite3 "$base" "pragma $1; create table rows(writer, n, body, primary key(writer, n));
        create index by_body on rows(substr(body, 1, 16)); create table sums(n, bytes); insert into sums values(0, 0);" \
        > /dev/null
    for ((w = 0; w < WRITERS; w++)); do
        timeout --kill-after=5 "$(count 120 3000)" \
            python3 "$HOST/writer.py" "$base" "$w" "$TRANSACTIONS" "$@" < /dev/null &
        pids+=($!)
        STARTED+=($!)
    done
    for w in "${!pids[@]}"; do
        wait "${pids[w]}" || fail "$mode: writer $w ended with an error or took too long"
        forget "${pids[w]}"
    done
    within 120 python3 "$HOST/judge.py" "$base" "$WRITERS" "$TRANSACTIONS" "$@" || fail "$mode: the base is wrong"
    within 60 sqlite3 "$base" vacuum
    within 120 python3 "$HOST/judge.py" "$base" "$WRITERS" "$TRANSACTIONS" "$@" ||
        fail "$mode: the base is wrong after a vacuum"
    say "$mode: $WRITERS writers, $TRANSACTIONS transactions each"
}

run_mode wal journal_mode=wal synchronous=full
run_mode delete journal_mode=delete synchronous=full
run_mode mmap journal_mode=wal synchronous=full mmap_size=268435456
run_mode mmap-delete journal_mode=delete synchronous=full mmap_size=268435456
run_mode truncate journal_mode=truncate synchronous=extra

remount
for mode in wal delete mmap mmap-delete truncate; do
    within 120 python3 "$HOST/judge.py" "$MNT/$mode.db" "$WRITERS" "$TRANSACTIONS" ||
        fail "$mode: the base is wrong after a remount"
done
finish
