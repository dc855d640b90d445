# A PostgreSQL server whose data lies on the mount and whose socket and log do not. Sourced after stage.sh.

# The newest there is.
for PROGRAMS in /usr/lib/postgresql/*/bin; do :; done
[[ -x $PROGRAMS/initdb && -x $PROGRAMS/pgbench ]] || skip "PostgreSQL is not installed"
id postgres > /dev/null 2>&1 || skip "there is no user postgres"
need runuser

DATA=
POSTMASTER=

# Runs one of its programs as its user: as_postgres SECONDS PROGRAM ARGUMENTS.
as_postgres() {
    within "$1" runuser -u postgres -- env -C "$SOCKETS" PGHOST="$SOCKETS" "$PROGRAMS/$2" "${@:3}"
}

create_cluster() {
    DATA=$MNT/postgres
    SOCKETS=$HOST/sockets
    mkdir "$DATA" "$SOCKETS"
    chown postgres: "$DATA" "$SOCKETS"
    as_postgres 120 initdb --data-checksums --auth=trust --no-locale --encoding=UTF8 --pgdata="$DATA" > /dev/null
    cat >> "$DATA/postgresql.conf" << CONF
listen_addresses = ''
unix_socket_directories = '$SOCKETS'
fsync = on
synchronous_commit = on
full_page_writes = on
max_wal_size = 256MB
shared_buffers = 32MB
CONF
    # The server reads it again after the daemon was killed.
    sync "$DATA/postgresql.conf"
}

start_server() {
    as_postgres 120 pg_ctl start --silent --wait --timeout=100 --pgdata="$DATA" --log="$SOCKETS/log" ||
        fail "the server does not start: $(tail -n 20 "$SOCKETS/log")"
    POSTMASTER=$(head -n 1 "$DATA/postmaster.pid")
    STARTED+=("$POSTMASTER")
}

stop_server() {
    as_postgres 120 pg_ctl stop --silent --wait --timeout=100 --mode="$1" --pgdata="$DATA"
    ends "$POSTMASTER" 20 || fail "the server goes on after its stop"
    forget "$POSTMASTER"
}

# Ends a server whose files are gone. It may have ended by itself, and so may its processes, which it names first.
server_processes() { echo "$POSTMASTER $(ps -o pid= --ppid "$POSTMASTER" | tr '\n' ' ')"; }
kill_server() {
    local pid
    kill -QUIT "$POSTMASTER" 2> /dev/null || true
    ends "$POSTMASTER" 3 || true
    for pid in "$@"; do
        is_alive "$pid" || continue
        kill -KILL "$pid" 2> /dev/null || true
        ends "$pid" 20 || fail "a process of the server does not end"
    done
    forget "$POSTMASTER"
}

query() {
    as_postgres 120 psql --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 --command "$1" postgres ||
        fail "no answer to: $1; the server says: $(tail -n 30 "$SOCKETS/log")"
}

# Whatever a transaction of pgbench adds to an account it adds to its teller, branch and history.
sums_agree() {
    local found
    found=$(query "select (select sum(abalance) from pgbench_accounts) = all (array[
        (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches),
        (select coalesce(sum(delta), 0) from pgbench_history)])")
    [[ $found == t ]] || fail "the sums of pgbench's tables do not agree $1"
}

checksums_agree() {
    as_postgres 300 pg_checksums --check --pgdata="$DATA" > "$HOST/checksums" 2>&1 ||
        fail "pg_checksums: $(cat "$HOST/checksums")"
}
