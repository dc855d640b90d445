#!/usr/bin/env bash
# PostgreSQL with checksums and fsync: pgbench, a stop without a checkpoint, recovery, sums that agree.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
source "$(dirname "${BASH_SOURCE[0]}")/postgresql_server.sh"
begin 2G
create_cluster

start_server
as_postgres 120 pgbench --initialize --quiet --scale="$(count 3 50)" postgres 2> /dev/null > /dev/null
as_postgres "$(count 90 900)" pgbench --client=4 --jobs=2 --no-vacuum --time="$(count 8 300)" postgres 2>&1 |
    grep -E "^(tps|number of transactions actually)"
stop_server immediate

start_server
sums_agree "after the recovery"
as_postgres 60 pgbench --client=4 --jobs=2 --no-vacuum --time="$(count 3 60)" postgres > /dev/null 2>&1
sums_agree "after more transactions"
as_postgres "$(count 60 600)" psql --quiet --command "vacuum full analyze" postgres
stop_server fast
checksums_agree

remount
checksums_agree
start_server
sums_agree "after a remount"
as_postgres 120 pg_dump postgres | grep -c "dump complete" > /dev/null || fail "pg_dump did not come to its end"
stop_server fast
finish
