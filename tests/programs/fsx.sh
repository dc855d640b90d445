#!/usr/bin/env bash
# fsx: random operations on one file, each read compared with what was written; then the same operations on the
# host, whose file must come out the same, also after a remount.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need fsx
begin 1G

OPERATIONS=$(count 20000 1000000)
# At least one byte: fsx would allocate ranges of no length, which is an error everywhere.
cat > "$HOST/every.toml" << 'TOML'
flen = 1048576
[opsize]
min = 1
max = 131072
[weights]
close_open = 1
invalidate = 2
mapread = 10
mapwrite = 10
read = 10
write = 10
truncate = 3
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 3
posix_fadvise = 2
copy_file_range = 5
TOML
# Whole blocks, as most programs write. With them no least size keeps fsx from allocating nothing.
sed -e '/^max/a align = 4096' -e '/^posix_fallocate/d' "$HOST/every.toml" > "$HOST/blocks.toml"
# Mostly mappings, and no fsync: the kernel has it all until it chooses to write.
sed -e 's/^\(map[a-z]* =\).*/\1 60/; s/^f.*sync =.*//; 1i nomsyncafterwrite = true' "$HOST/every.toml" \
    > "$HOST/mappings.toml"

random=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
say "the random seed is $random"
RUNS=(every:1 blocks:2 mappings:3 "every:$random")

# All of them at once, each on a file of its own. No run is longer than fsx bears, which keeps mappings.
PIECES=$(count 1 10)
EACH=$((OPERATIONS / 2 / PIECES))
exercise() {
    local piece
    for ((piece = 0; piece < PIECES; piece++)); do
        exercise_piece "$1" "$2" "$piece"
    done
}

exercise_piece() {
    local half=$1 folder=$2 piece=$3 run settings seed pids=() n other=$(($1 + 1000 * $3))
    for run in "${RUNS[@]}"; do
        settings=${run%:*} seed=${run#*:}
        # A second half begins with an empty file: fsx cannot go on with one.
        timeout --kill-after=5 "$(count 150 10000)" fsx -q -f "$HOST/$settings.toml" -S "$((seed + other))" \
            -N "$EACH" -P "$HOST" "$folder/$settings.$seed.$half.$piece" > "$HOST/$settings.$seed.log" 2>&1 &
        pids+=($!)
        STARTED+=($!)
    done
    for n in "${!RUNS[@]}"; do
        wait "${pids[n]}" || fail "${RUNS[n]%:*} with seed $((${RUNS[n]#*:} + other)), $EACH operations" \
            "in $folder: $(tail -n 40 "$HOST/${RUNS[n]/:/.}.log")"
        forget "${pids[n]}"
    done
}

mkdir "$HOST/reference"
for half in 0 1; do
    exercise "$half" "$MNT"
    remount
    exercise "$half" "$HOST/reference"
    for run in "${RUNS[@]}"; do
        for ((piece = 0; piece < PIECES; piece++)); do
            file=${run/:/.}.$half.$piece
            within 60 cmp "$MNT/$file" "$HOST/reference/$file" || fail "$file is not what the host has"
        done
    done
done
finish
