#!/usr/bin/env bash
# stress-ng's stressors of filesystems, each for a moment. What fails on the host's filesystem too is not ours.
source "$(dirname "${BASH_SOURCE[0]}")/stage.sh"
need stress-ng
begin 2G

SECONDS_EACH=$(count 1 30)
STRESSORS=(
    access chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl fiemap filename flock fpunch
    fstat getdent handle hdd inotify io iomix lease link locka lockf lockofd mknod mmap open rename seek symlink
    sync-file touch utime verity xattr
)
# Their own options: as small as fits, and what they leave out unless asked.
options() {
    case $1 in
        hdd) echo --hdd-bytes 32m --hdd-opts direct,fsync,rd-rnd,wr-rnd ;;
        iomix) echo --iomix-bytes 32m ;;
        fallocate) echo --fallocate-bytes 64m ;;
        mmap) echo --mmap-file --mmap-bytes 16m --mmap-ops 4 ;;
        seek) echo --seek-size 16m --seek-punch ;;
        sync-file) echo --sync-file-bytes 16m ;;
        copy-file) echo --copy-file-bytes 128m ;;
        dirdeep) echo --dirdeep-dirs 3 --dirdeep-inodes 500 ;;
        filename) echo --filename-opts posix ;;
    esac
}
# 0: passed; 3 and 4: there is not enough of something, or it is not implemented here.
stress() {
    local stressor=$1 folder=$2 status=0
    # shellcheck disable=SC2046
    within "$((SECONDS_EACH + 90))" stress-ng --temp-path "$folder" --timeout "$SECONDS_EACH" --verify --quiet \
        "--$stressor" 2 $(options "$stressor") > "$HOST/stress.log" 2>&1 || status=$?
    return $status
}

mkdir "$MNT/work" "$HOST/work"
not_here=()
for stressor in "${STRESSORS[@]}"; do
    status=0
    stress "$stressor" "$MNT/work" || status=$?
    case $status in
        0) ;;
        3 | 4) not_here+=("$stressor") ;;
        *)
            ours=$(cat "$HOST/stress.log")
            if stress "$stressor" "$HOST/work"; then
                fail "$stressor ended with $status: $ours"
            fi
            say "$stressor fails on the host too: $ours"
            ;;
    esac
done
say "not possible here: ${not_here[*]:-none}"
left=$(within 60 find "$MNT/work" -mindepth 1 | head -n 5)
[[ -z $left ]] || say "left behind: $left"
finish
