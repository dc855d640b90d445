//! Locks: fcntl(2), flock(2) and those of open files, between processes that come to their ends or are ended.

use crate::stage::{Ext4, Stage, agree_with_ext4, can_mount};

/// Takes locks in two processes, prints who gets which.
const SCRIPT: &str = r#"
import errno, fcntl, os, signal, struct, sys, time
os.chdir(sys.argv[1])
SETLK, SETLKW, GETLK = fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_GETLK
OFD_GETLK, OFD_SETLK, OFD_SETLKW = 36, 37, 38
RD, WR, UN = fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK
def lock(fd, how, kind, start=0, length=0):
    return struct.unpack("hhqqi4x", fcntl.fcntl(fd, how, struct.pack("hhqqi4x", kind, 0, start, length, 0)))
def say(what, work):
    try: outcome = work()
    except OSError as error: outcome = errno.errorcode[error.errno]
    print(what, outcome)
def attempt(*args):
    try: lock(*args); return "got"
    except OSError as error: return errno.errorcode[error.errno]
def tryf(fd, how):
    try: fcntl.flock(fd, how | fcntl.LOCK_NB); return "got"
    except OSError as error: return errno.errorcode[error.errno]
class Other:
    """Another process with the same file open, which does what it is told."""
    def __init__(self, name):
        self.to, theirs = os.pipe()[::-1], None
        r, w = os.pipe(); r2, w2 = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(w); os.close(r2); fd = os.open(name, os.O_RDWR); stream = os.fdopen(r)
                for line in stream:
                    try: result = eval(line)
                    except OSError as error: result = errno.errorcode[error.errno]
                    os.write(w2, (repr(result) + "\n").encode())
            finally: os._exit(0)
        os.close(r); os.close(w2); self.w, self.r = w, os.fdopen(r2)
    def tell(self, line): os.write(self.w, (line + "\n").encode())
    def answer(self): return self.r.readline().strip()
    def ask(self, line): self.tell(line); return self.answer()
    def end(self): os.close(self.w); os.waitpid(self.pid, 0)
open("f", "wb").write(b"x" * 1000); fd = os.open("f", os.O_RDWR)
o = Other("f")
# Ranges of one process beside another's.
print(attempt(fd, SETLK, WR, 0, 100), o.ask("attempt(fd, SETLK, WR, 50, 10)"), o.ask("attempt(fd, SETLK, WR, 100, 10)"), o.ask("attempt(fd, SETLK, RD, 0, 1)"))
print(o.ask("lock(fd, GETLK, WR, 0, 1)[:1] + lock(fd, GETLK, WR, 0, 1)[2:4]"), int(o.ask("lock(fd, GETLK, WR, 0, 1)[4]")) == os.getpid())
print(attempt(fd, SETLK, UN, 20, 10), o.ask("attempt(fd, SETLK, WR, 20, 10)"), o.ask("attempt(fd, SETLK, WR, 19, 1)"), lock(fd, GETLK, WR, 0, 0)[2:4])
print(attempt(fd, SETLK, RD, 200, 10), o.ask("attempt(fd, SETLK, RD, 200, 10)"), o.ask("attempt(fd, SETLK, WR, 200, 10)"))
print(o.ask("attempt(fd, SETLK, UN)"), attempt(fd, SETLK, UN), attempt(fd, SETLK, RD, 2**62, 2**62), o.ask("attempt(fd, SETLK, WR, 2**63 - 1, 1)"))
# A lock on a descriptor for reading.
ro = os.open("f", os.O_RDONLY); say("write lock on a reader", lambda: attempt(ro, SETLK, WR)); 
# Closing any descriptor of the file drops the process's locks.
attempt(fd, SETLK, WR, 0, 10); os.close(ro); print("after close", o.ask("attempt(fd, SETLK, WR, 0, 10)")); o.ask("attempt(fd, SETLK, UN)")
# A deadlock of two.
attempt(fd, SETLK, WR, 0, 1); o.ask("attempt(fd, SETLK, WR, 1, 1)"); o.tell("attempt(fd, SETLKW, WR, 0, 1)"); time.sleep(0.2)
print("deadlock", attempt(fd, SETLKW, WR, 1, 1)); attempt(fd, SETLK, UN, 0, 1); print(o.answer()); o.ask("attempt(fd, SETLK, UN)")
# A wait ends with a signal, and with the holder.
attempt(fd, SETLK, UN); o.ask("attempt(fd, SETLK, WR)")
def alarm(*_): raise InterruptedError(errno.EINTR, "")
signal.signal(signal.SIGALRM, alarm); signal.setitimer(signal.ITIMER_REAL, 0.2); print("signal", attempt(fd, SETLKW, WR))
os.kill(o.pid, signal.SIGKILL); os.waitpid(o.pid, 0); print("holder killed", attempt(fd, SETLKW, WR)); attempt(fd, SETLK, UN)
# flock: of the open file, shared by a fork, dropped by the last close, converted.
o = Other("f")
second = os.open("f", os.O_RDONLY)
print(tryf(fd, fcntl.LOCK_EX), tryf(second, fcntl.LOCK_SH), o.ask("tryf(fd, fcntl.LOCK_SH)"), tryf(fd, fcntl.LOCK_SH), o.ask("tryf(fd, fcntl.LOCK_SH)"), tryf(second, fcntl.LOCK_EX), tryf(fd, fcntl.LOCK_UN))
copy = os.dup(second); print(o.ask("tryf(fd, fcntl.LOCK_UN)"), tryf(second, fcntl.LOCK_EX), o.ask("tryf(fd, fcntl.LOCK_EX)")); os.close(second); print(o.ask("tryf(fd, fcntl.LOCK_EX)")); os.close(copy); print(o.ask("tryf(fd, fcntl.LOCK_EX)"))
# flock and fcntl do not see each other.
print(attempt(fd, SETLK, WR), tryf(fd, fcntl.LOCK_SH)); os.kill(o.pid, signal.SIGKILL); os.waitpid(o.pid, 0); print("holder killed", tryf(fd, fcntl.LOCK_EX)); tryf(fd, fcntl.LOCK_UN); attempt(fd, SETLK, UN)
# Locks of the open file, within one process too.
o = Other("f"); second = os.open("f", os.O_RDWR)
print(attempt(fd, OFD_SETLK, WR, 0, 10), attempt(second, OFD_SETLK, WR, 5, 1), attempt(second, OFD_SETLK, WR, 10, 1), attempt(second, SETLK, WR, 0, 1), o.ask("attempt(fd, OFD_SETLK, RD, 0, 1)"), o.ask("attempt(fd, SETLK, RD, 0, 1)"))
print(o.ask("lock(fd, OFD_GETLK, WR, 0, 1)[2:]"), o.ask("lock(fd, GETLK, WR, 0, 1)[4]"))
third = os.open("f", os.O_RDWR); os.close(third); print("close of another", attempt(second, OFD_SETLK, WR, 0, 1)); os.close(fd); print("close", attempt(second, OFD_SETLK, WR, 0, 1))
o.ask("attempt(fd, OFD_SETLKW, WR, 100, 5)"); print(attempt(second, OFD_SETLK, WR, 100, 1)); os.kill(o.pid, signal.SIGKILL); os.waitpid(o.pid, 0); print("holder killed", attempt(second, OFD_SETLKW, WR, 100, 1))
# Locks on what has no name, and on a directory.
os.unlink("f"); print(attempt(second, SETLK, WR), tryf(second, fcntl.LOCK_EX)); d = os.open(".", os.O_RDONLY); print(tryf(d, fcntl.LOCK_EX), attempt(d, SETLK, RD), attempt(d, SETLK, WR))
say("lease", lambda: fcntl.fcntl(second, fcntl.F_GETLEASE))
"#;

#[test]
fn locks_are_those_of_ext4() {
    if !can_mount("locks_are_those_of_ext4") {
        return;
    }
    let stage = Stage::image("256M");
    let ext4 = Ext4::new(&stage);
    stage.mount();
    agree_with_ext4(&stage, &ext4, SCRIPT, &[]);
}
