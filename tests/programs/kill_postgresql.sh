#!/usr/bin/env bash
# kill -9 of the daemon under PostgreSQL: every transaction whose commit had returned is there after it.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
source "$(dirname "${BASH_SOURCE[0]}")/postgresql_server.sh"
begin 2G
create_cluster

CLIENTS=4
start_server
query "create table rows(writer int, n int, body text, primary key(writer, n))"
query "create table sums(writer int primary key, n int)"
query "insert into sums select generate_series(1, $CLIENTS), 0"
: > "$HOST/ledger"

# One client: psql prints what a statement returns once the server has said that it is committed.
client() {
    local writer=$1 n
    for ((n = $2 + 1; n < 1000000; n++)); do
        echo "with one as (insert into rows values($writer, $n, repeat(md5('$n'), $n % 50)) returning n)
            update sums set n = sums.n + 1 from one where writer = $writer returning $writer || ' ' || sums.n;"
    done 2> /dev/null | timeout --kill-after=5 120 runuser -u postgres -- env -C "$SOCKETS" "$PROGRAMS/psql" --quiet \
        --tuples-only --no-align --no-psqlrc --set=ON_ERROR_STOP=1 --host="$SOCKETS" postgres
}

for ((round = 0; round < $(count 3 20); round++)); do
    pids=()
    for ((writer = 1; writer <= CLIENTS; writer++)); do
        last=$(query "select n from sums where writer = $writer")
        client "$writer" "$last" >> "$HOST/ledger" 2>> "$HOST/workers.log" &
        pids+=($!)
        STARTED+=($!)
    done
    let_them_work "$HOST/ledger"
    read -ra processes <<< "$(server_processes)"
    kill_daemon
    kill_server "${processes[@]}"
    for pid in "${pids[@]}"; do
        ends "$pid" 20 || fail "a client goes on without its server"
        wait "$pid" || true
        forget "$pid"
    done
    # Every other time the dead mount is taken over.
    ((round % 2)) || within 60 "$AEGISFS" umount "$MNT"
    attach
    # The number in these may still be taken, by a server that has ended and that nobody has waited for yet.
    rm -f "$DATA/postmaster.pid" "$SOCKETS"/.s.*
    start_server
    query "select writer || ' ' || n from rows" | sort > "$HOST/rows"
    sort "$HOST/ledger" > "$HOST/acknowledged"
    lost=$(comm -13 "$HOST/rows" "$HOST/acknowledged" | head -n 3)
    [[ -z $lost ]] || fail "round $round, killed after $DELAY s: acknowledged and not there: $lost"
    # What a transaction changed in two tables is in both or in none, and there are no gaps.
    agrees=$(query "select count(*) from sums where n <> (select count(*) from rows where rows.writer = sums.writer)
        or n <> (select coalesce(max(rows.n), 0) from rows where rows.writer = sums.writer)")
    [[ $agrees == 0 ]] || fail "round $round, killed after $DELAY s: the tables do not agree"
    say "round $round: $(wc -l < "$HOST/acknowledged") acknowledged, $(wc -l < "$HOST/rows") there"
done
as_postgres 120 pg_dump postgres | grep -c "dump complete" > /dev/null || fail "pg_dump did not come to its end"
stop_server fast
checksums_agree
remount
checksums_agree
finish
