# What every script here stands on: an image file in a folder of its own, mounted, and taken away at the end
# whatever happens. Sourced, never run.
#
#   AEGISFS                  the program under test
#   AEGISFS_LONG             1 for the long run
#   AEGISFS_MOUNT_OPTIONS    how to mount; `defaults` unless given
#
# IMAGES are the devices of the filesystem.
#
# Whatever touches the mount runs under `within SECONDS`, because a filesystem that hangs must not hang its test.
# Processes are ended by their numbers, which the script that started them knows.

set -euo pipefail

: "${AEGISFS:?has to name the program under test}"
LONG=${AEGISFS_LONG:-}
MOUNT_OPTIONS=${AEGISFS_MOUNT_OPTIONS:-defaults}
NAME=$(basename "$0" .sh)
SOURCES=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
FOLDER=
IMAGES=()
# Disks that nbdfuse shows, each in a folder of its own.
DISKS=()
# The daemon of the present mount, and whatever else was started and not waited for.
DAEMON=
STARTED=()

say() { echo "$NAME: $*"; }

fail() {
    echo "$NAME: FAILED: $*" >&2
    exit 1
}

# The second number in the long run, else the first.
count() { if [[ -n $LONG ]]; then echo "$2"; else echo "$1"; fi; }

skip() {
    echo "SKIPPED: programs::$NAME: $*"
    exit 0
}

# Ends the script if one of these is not installed.
need() {
    local program
    for program in "$@"; do
        command -v "$program" > /dev/null || skip "$program is not installed"
    done
}

# Runs a command under a time limit. A signal reaches us while we wait, and is passed on.
within() {
    local status=0 running
    timeout --kill-after=5 "$@" <&0 &
    running=$!
    STARTED+=("$running")
    wait "$running" || status=$?
    forget "$running"
    if [[ $status == 124 || $status == 137 ]]; then
        fail "this took longer than $1 s: ${*:2}"
    fi
    return $status
}

# Such a process needs no ending any more.
forget() {
    local pid left=()
    for pid in "${STARTED[@]}"; do
        [[ $pid == "$1" ]] || left+=("$pid")
    done
    STARTED=("${left[@]}")
}

is_alive() {
    local state
    state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2> /dev/null) || return 1
    [[ -n $state && $state != Z && $state != X ]]
}

# Whether a process ends within so many seconds.
ends() {
    local n
    for ((n = 0; n < $2 * 20; n++)); do
        is_alive "$1" || return 0
        sleep 0.05
    done
    return 1
}

is_mounted() { findmnt --noheadings --mountpoint "$MNT" > /dev/null; }

clean_up() {
    local status=$? pid disk
    trap - EXIT ERR
    set +e
    for pid in "${STARTED[@]}"; do
        kill -TERM "$pid" 2> /dev/null
    done
    if is_mounted; then
        timeout 20 umount --lazy "$MNT"
    fi
    # Without users the daemon ends by itself. One that does not is stuck, and so is whoever waits for it.
    if [[ -n $DAEMON ]] && ! ends "$DAEMON" 20; then
        echo "$NAME: the daemon did not end; it is killed" >&2
        kill -KILL "$DAEMON" 2> /dev/null
        ends "$DAEMON" 5
    fi
    for disk in "${DISKS[@]}"; do
        mountpoint -q "$disk" && timeout 20 umount --lazy "$disk"
    done
    for pid in "${STARTED[@]}"; do
        ends "$pid" 5 || kill -KILL "$pid" 2> /dev/null
    done
    rm -rf --one-file-system "$FOLDER"
    exit "$status"
}

# Makes the folder: MNT is a mount point, HOST a folder outside of it.
prepare() {
    [[ $(id -u) == 0 && -e /dev/fuse ]] || skip "needs root and /dev/fuse"
    need timeout findmnt rsync python3
    FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/aegisfs-$NAME.XXXXXX")
    IMAGE=$FOLDER/disk.img
    MNT=$FOLDER/mnt
    HOST=$FOLDER/host
    trap clean_up EXIT
    trap 'exit 143' TERM INT HUP
    trap 'echo "$NAME: FAILED: line $LINENO: $BASH_COMMAND" >&2' ERR
    set -E
    # Others than root have to get through.
    chmod 755 "$FOLDER"
    mkdir "$MNT" "$HOST"
}

# The same with an image file, formatted and mounted.
begin() {
    prepare
    IMAGES=("$IMAGE")
    within 60 "$AEGISFS" format --size "$1" "$IMAGE" > /dev/null
    attach
}

attach() {
    within 120 "$AEGISFS" mount -o "$MOUNT_OPTIONS" "${IMAGES[@]}" "$MNT"
    # A pool that lacks a device says so by its exit code as well.
    DAEMON=$({ timeout 60 "$AEGISFS" --json status "$MNT" || true; } | sed -n 's/.*"pid":\([0-9]*\).*/\1/p')
    [[ -n $DAEMON ]] || fail "the status tells no process"
}

detach() {
    local daemon=$DAEMON n
    # Others may look at whatever is mounted, and have it open for a moment.
    for ((n = 0; n < 20; n++)); do
        within 180 "$AEGISFS" umount "$MNT" && break
        is_mounted || fail "the unmount failed, but nothing is mounted any more"
        sleep 0.5
    done
    ((n < 20)) || fail "it cannot be unmounted"
    ends "$daemon" 20 || fail "the daemon did not end after umount"
    DAEMON=
}

# Everything from the device again.
remount() {
    detach
    attach
}

# What the daemon held in memory is gone. The next mount is over the dead one, or after it was taken away.
kill_daemon() {
    kill -KILL "$DAEMON"
    ends "$DAEMON" 20 || fail "the daemon lives on after kill -9"
    DAEMON=
}

# Waits until each of these files has grown by some lines, and then for a random part of two seconds, DELAY. Their
# complaints are in workers.log.
let_them_work() {
    local file lines n milliseconds=$((RANDOM % 2000))
    for file in "$@"; do
        lines=$(wc -l < "$file")
        for ((n = 0; $(wc -l < "$file") < lines + 10; n++)); do
            ((n < 1200)) || fail "nobody works: $(tail -n 5 "$HOST/workers.log")"
            sleep 0.05
        done
    done
    DELAY=$(printf '%d.%03d' $((milliseconds / 1000)) $((milliseconds % 1000)))
    sleep "$DELAY"
}

check() {
    within 600 "$AEGISFS" check "${IMAGES[@]}" > "$FOLDER/check" 2>&1 ||
        fail "check found something: $(cat "$FOLDER/check")"
}

# The end of every script: nothing was refused, and the device is in order.
finish() {
    timeout 60 "$AEGISFS" --json status "$MNT" | grep -q '"poisoned":null' || fail "writing was stopped"
    detach
    check
    say "ok"
}

# A disk of so many bytes that fails every read and write while $HOST/fail-NAME is there. Its path is DISK.
failing_disk() {
    local name=$1 bytes=$2 n
    mkdir "$FOLDER/$name"
    truncate -s "$bytes" "$HOST/$name.img"
    nbdfuse "$FOLDER/$name" --command nbdkit -s --exit-with-parent --filter=error file "$HOST/$name.img" \
        error=EIO error-rate=100% error-file="$HOST/fail-$name" 2> "$HOST/$name.log" &
    STARTED+=($!)
    DISKS+=("$FOLDER/$name")
    DISK=$FOLDER/$name/nbd
    for ((n = 0; n < 200; n++)); do
        [[ -e $DISK ]] && return 0
        sleep 0.05
    done
    fail "nbdfuse shows no disk: $(cat "$HOST/$name.log")"
}

# Waits until every device takes part again.
until_whole() {
    local n
    for ((n = 0; n < 1200; n++)); do
        timeout 60 "$AEGISFS" status "$MNT" > "$FOLDER/status" && return 0
        sleep 0.1
    done
    fail "not every device takes part: $(cat "$FOLDER/status")"
}

# Fails unless two trees agree in everything: bytes, names, links, owners, modes, times, attributes, ACLs.
# What a program changes by itself is left out with options of rsync's.
same_tree() {
    local from=$1 to=$2 difference
    difference=$(within 300 rsync -aHAXn --numeric-ids --checksum --delete --itemize-changes "${@:3}" "$from/" "$to/")
    [[ -z $difference ]] || fail "$to is not as $from: $difference"
}

# So many bytes that do not compress, the same for the same seed.
noise() {
    python3 -c 'import random, sys
sys.stdout.buffer.write(random.Random(sys.argv[1]).randbytes(int(sys.argv[2])))' "$1" "$2"
}

# A folder on the host with some of everything that a backup has to carry; the second form is a later state of it.
make_tree() {
    local tree=$1 n
    mkdir -p "$tree/sources" "$tree/many"
    cp -a "$SOURCES/crates" "$SOURCES/docs" "$tree/sources/"
    for ((n = 0; n < 300; n++)); do
        echo "the number $n" > "$tree/many/file $n"
    done
    noise 1 5000000 > "$tree/noise"
    seq 400000 > "$tree/numbers"
    truncate -s 50M "$tree/sparse"
    printf end | dd of="$tree/sparse" bs=1 seek=30000000 conv=notrunc status=none
    : > "$tree/empty"
    mkdir "$tree/empty folder"
    ln "$tree/noise" "$tree/many/hard link"
    ln -s ../nowhere "$tree/many/symlink"
    mkfifo "$tree/many/fifo"
    touch -d '2001-02-03 04:05:06.789' "$tree/numbers" "$tree/empty folder"
    chmod 4711 "$tree/numbers"
    chown 1234:5678 "$tree/many"
    printf 'a name\nof two lines' > "$tree/a name"$'\n'"of two lines"
    echo long > "$tree/$(printf 'n%.0s' {1..255})"
    echo bytes > "$tree/"$'\xff\xfe'
}

change_tree() {
    local tree=$1
    rm -rf "$tree/sources/docs" "$tree/many/file 1"*
    printf changed | dd of="$tree/noise" bs=1 seek=2500000 conv=notrunc status=none
    seq 400001 400100 >> "$tree/numbers"
    mv "$tree/sources" "$tree/moved"
    printf middle | dd of="$tree/sparse" bs=1 seek=10000000 conv=notrunc status=none
    mkdir "$tree/later"
    noise 2 1000000 > "$tree/later/noise"
}
