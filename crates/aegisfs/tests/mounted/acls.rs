//! POSIX ACLs: what setfacl(1) sets, getfacl(1) shows and the kernel enforces, as on the host's own filesystem.

use crate::requirements::has;
use crate::stage::{Stage, can_mount, must, shell};

/// Prints what it finds, in a folder of any filesystem.
const SCRIPT: &str = r#"
cd "$1"; umask 022
show() { getfacl --omit-header --absolute-names --numeric "$@"; stat -c '%n %A' "$@"; }
try() { setpriv --reuid 1234 --regid 1234 --clear-groups "$@" > /dev/null 2>&1 && echo "may $*" || echo "may not $*"; }
chmod 755 .
echo secret > file; chmod 640 file; try cat file
setfacl -m u:1234:r file; show file; try cat file; try sh -c 'echo x >> file'
chmod 600 file; show file; try cat file
chmod 660 file; show file; try cat file
setfacl -m g:1234:rw,m::r file; show file; try sh -c 'echo x >> file'
setfacl -x u:1234,g:1234 file; show file; setfacl -b file; show file
setfacl -m u::rwx,g::-,o::x file; show file; getfattr -d -m system file
# A copy has what the original had.
setfacl -m u:1234:rw,u:77:x,g:20:r file; cp -p file copy; show copy; cp -a . ../again; show ../again/copy; rm -r ../again
tar --acls -cf all.tar file; mkdir out; tar --acls -C out -xf all.tar; show out/file; rm -r all.tar out
# What is made in a directory with a default.
mkdir dir; setfacl -d -m u:1234:rwx,g::rx,o::- dir; show dir; try touch dir/x
mkdir -m 2770 dir/deep; mkdir dir/sub; touch dir/new; (umask 077; touch dir/masked); mkfifo dir/fifo; ln -s new dir/link
show dir/deep dir/sub dir/new dir/masked dir/fifo; stat -c '%n %A' dir/link
setfacl -m u:1234:rwx dir; try touch dir/x; try cat dir/new; show dir
python3 -c 'import os; f = os.open("dir", os.O_TMPFILE | os.O_RDWR, 0o666); os.link(f"/proc/self/fd/{f}", "dir/tmp")'; show dir/tmp
setfacl -k dir; show dir; touch dir/plain; show dir/plain; setfacl -b dir; show dir
# By default the mode comes along with the named ones; the setgid bit goes with a stranger's.
setfacl -d -m o::rwx dir; touch dir/open; show dir/open
echo > mine; chown 1234:55 mine; chmod 2775 mine; try setfacl -m u:9:r mine; show mine
# Refusals.
setfacl -d -m u:1:r file 2>&1 | sed 's/.*: //'; try setfacl -m u:1234:rwx file
python3 - <<'END'
import os, struct
def acl(*entries): return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
plain = [(1, 6, -1 & 0xffffffff), (4, 4, -1 & 0xffffffff), (0x20, 0, -1 & 0xffffffff)]
for name, value in [("empty", b""), ("short", acl(*plain)[:-1]), ("version", b"\3\0\0\0"), ("lacking", acl(*plain[:2])),
                    ("unmasked", acl(plain[0], (2, 7, 5), *plain[1:])), ("whole", acl(*plain))]:
    try: os.setxattr("file", "system.posix_acl_access", value); print(name, "taken")
    except OSError as error: print(name, error.strerror)
END
show file
"#;

/// The same over all of a tree, for after a remount.
const LIST: &str = "cd \"$1\"; find . | sort | xargs -d '\\n' getfacl --absolute-names --numeric --physical";

#[test]
fn acls_work_as_on_the_host() {
    if !can_mount("acls_work_as_on_the_host") || !has("acls_work_as_on_the_host", "setfacl") {
        return;
    }
    let run = |script: &str, folder: &str| must("bash", &["-c", script, "bash", folder]);
    for options in ["writeback=on", "writeback=off"] {
        let stage = Stage::image("256M");
        stage.mount_with(options);
        let (host, ours) = (stage.path("host"), format!("{}/ours", stage.mnt()));
        shell(&format!("mkdir {host} {ours}; chmod 755 {} {}", stage.path("."), stage.mnt()));
        let (expected, found) = (run(SCRIPT, &host), run(SCRIPT, &ours));
        assert!(expected.contains("user:1234:rw"), "the host's own filesystem has ACLs");
        let difference = expected.lines().zip(found.lines()).find(|(host, ours)| host != ours);
        assert!(difference.is_none() && expected.len() == found.len(), "{difference:?}\n{expected}\n{found}");
        let before = run(LIST, &ours);
        assert_eq!(before, run(LIST, &host));
        stage.umount();
        stage.check();
        stage.mount_with(options);
        assert_eq!(run(LIST, &ours), before);
    }
}
