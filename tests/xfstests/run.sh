#!/usr/bin/env bash
# The generic tests of xfstests on a mount, with a filesystem check after each of them.
#
#   run.sh TREE [GROUP | NUMBER]...     a built tree of xfstests; `quick` when nothing else is named
#
#   AEGISFS               the program under test
#   AEGISFS_XFSTESTS_SECONDS   how long one test may take
#
# What xfstests does not know of FUSE, it is told in a copy of its tree: how to make a filesystem, also one of some size,
# and how to check it. Tests that cannot pass stand in expected.txt.
set -euo pipefail
: "${AEGISFS:?has to name the program under test}"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tree=$(cd "${1:?has to name a built tree of xfstests}" && pwd)
shift
(($#)) || set -- quick
[[ $(id -u) == 0 && -e /dev/fuse && -x $tree/ltp/fsstress ]] || { echo "needs root, /dev/fuse and a built tree" >&2; exit 1; }
AEGISFS=$(realpath "$AEGISFS")
folder=$(mktemp -d "${AEGISFS_XFSTESTS_FOLDER:-${TMPDIR:-/tmp}}/aegisfs-xfstests.XXXXXX")
helper=/sbin/mount.fuse.aegisfs
[[ ! -e $helper ]] || { echo "$helper is there already" >&2; exit 1; }
RUNNING=
clean_up() {
    local status=$? place n
    trap - EXIT
    set +e
    [[ -z $RUNNING ]] || kill -KILL -- "-$RUNNING" 2> /dev/null
    for place in scratch test; do
        for ((n = 0; n < 5; n++)); do
            findmnt --noheadings --mountpoint "$folder/$place" > /dev/null || break
            timeout 60 umount "$folder/$place" || timeout 60 umount --lazy "$folder/$place"
        done
    done
    rm -f "$helper"
    rm -rf --one-file-system "$folder"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 143' TERM INT HUP

cp -r "$tree" "$folder/tree"
# Others than root have to get through.
chmod 755 "$folder"
mkdir "$folder/test" "$folder/scratch"
cd "$folder/tree"
cat > "$helper" << HELPER
#!/bin/bash
# Made by a test run, which removes it.
device=\$1 place=\$2
shift 2
options=()
while ((\$#)); do
    case \$1 in
    -o) options+=(-o "\$2"); shift 2 ;;
    -t) shift 2 ;;
    *) shift ;;
    esac
done
exec "$AEGISFS" mount "\$device" "\$place" "\${options[@]}" > /dev/null
HELPER
chmod +x "$helper"
python3 - << 'PYTHON'
path = "common/rc"
text = open(path).read()
def change(old, new, times=1):
    global text
    assert text.count(old) >= times, "xfstests has changed: " + old
    text = text.replace(old, new)
change("-e 's/fuse.ceph-fuse/ceph-fuse/'", "-e 's/fuse.ceph-fuse/ceph-fuse/' -e 's/fuse.aegisfs/fuse/'")
change("\tnfs*|afs|cifs|ceph|overlay|glusterfs|pvfs2|9p|fuse|virtiofs)\n\t\t# unable",
       "\tfuse)\n\t\t_fuse_make\n\t\treturn $?\n\t\t;;\n\tnfs*|afs|cifs|ceph|overlay|glusterfs|pvfs2|9p|virtiofs)\n\t\t# unable")
change('\t*)\n\t\t_notrun "Filesystem $FSTYP not supported in _scratch_mkfs_sized"',
       '\tfuse)\n\t\t_fuse_make $fssize\n\t\t;;\n\t*)\n\t\t_notrun "Filesystem $FSTYP not supported in _scratch_mkfs_sized"')
nothing = "    fuse)\n\t# no way to check consistency for fuse\n\t;;\n"
check = "    fuse)\n\t_fuse_check $%s_DEV $%s _%s_mount || return 1\n\t;;\n"
change(nothing, "@@", 2)
text = text.replace("@@", check % ("TEST", "TEST_DIR", "test"), 1).replace("@@", check % ("SCRATCH", "SCRATCH_MNT", "scratch"), 1)
text += '''
_fuse_make()
{
	rm -f $SCRATCH_DEV
	$AEGISFS format --yes --force --size ${1:-$FUSE_BYTES} $SCRATCH_DEV > /dev/null
}

_fuse_check()
{
	local was=
	if mountpoint -q $2; then was=1; umount $2 || return 1; fi
	if ! $AEGISFS check $1 >> $seqres.full 2>&1; then
		echo "_fuse_check: $1 is damaged (see $seqres.full)"
		[ -z "$was" ] || $3
		return 1
	fi
	[ -z "$was" ] || $3
}
'''
open(path, "w").write(text)
PYTHON
cat > local.config << CONFIG
export FSTYP=fuse FUSE_SUBTYP=.aegisfs
export TEST_DEV=$folder/test.img TEST_DIR=$folder/test
export SCRATCH_DEV=$folder/scratch.img SCRATCH_MNT=$folder/scratch
CONFIG
export AEGISFS FUSE_BYTES=8G
"$AEGISFS" format --size 8G "$folder/test.img" > /dev/null
"$AEGISFS" format --size 8G "$folder/scratch.img" > /dev/null
for user in fsgqa 123456-fsgqa fsgqa2; do
    id "$user" > /dev/null 2>&1 || useradd --no-create-home "$user"
done

tests=()
for which in "$@"; do
    if [[ $which =~ ^[0-9]{3}$ ]]; then
        tests+=("$which")
    else
        mapfile -t -O "${#tests[@]}" tests < <(grep -w -- "$which" tests/generic/group.list | cut -d' ' -f1)
    fi
done
((${#tests[@]})) || { echo "there are no such tests" >&2; exit 1; }
seconds=${AEGISFS_XFSTESTS_SECONDS:-900}
declare -A passed=() expected=() failed=() left_out=()
for number in "${tests[@]}"; do
    if reason=$(grep "^$number never" "$here/expected.txt"); then
        left_out[$number]="$number ${reason#* }"
        continue
    fi
    setsid timeout --kill-after=10 "$seconds" ./check "generic/$number" > "$folder/out" 2>&1 < /dev/null &
    RUNNING=$!
    status=0
    wait "$RUNNING" || status=$?
    RUNNING=
    if grep -q '\[not run\]' "$folder/out"; then
        left_out[$number]=$(sed -n 's/.*\[not run\] //p' "$folder/out" | head -n 1)
    elif [[ $status == 0 ]] && grep -q '^Passed all' "$folder/out"; then
        passed[$number]=1
    elif ((status < 124)) && ! grep -q _fuse_check "$folder/out" && reason=$(grep "^$number " "$here/expected.txt"); then
        expected[$number]=1
        echo "generic/$number fails as expected: ${reason#* }"
    else
        failed[$number]=1
        echo "generic/$number FAILED ($status):"
        sed -n '/^generic/,$p' "$folder/out" | sed -n 's/^/    /; 1,40p'
        for place in scratch test; do
            ! mountpoint -q "$folder/$place" || timeout 60 umount "$folder/$place" || timeout 60 umount --lazy "$folder/$place"
        done
    fi
done
printf '%s\n' "${left_out[@]}" | sed 's#/[^ ]*\.img#IMAGE#' | sort | uniq -c | sort -rn | sed -n 's/^/   not run: /; 1,30p'
echo "xfstests generic: ${#tests[@]} asked for: ${#passed[@]} passed, ${#expected[@]} failed as expected, ${#failed[@]} failed," \
    "${#left_out[@]} need what there is not here"
((${#failed[@]} == 0 && ${#passed[@]} > 0))
