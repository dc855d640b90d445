//! What a run of the tests needs besides Rust, and how it comes by it.

use crate::shell;
use anyhow::Result;

/// A program that is there or not, and the Debian package that brings it.
pub(crate) struct Package {
    program: &'static str,
    package: &'static str,
}

/// A program that cargo builds; a version pins it.
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
    version: Option<&'static str>,
}

/// For every stage. The C compiler builds zstd.
const PACKAGES: [Package; 12] = [
    Package { program: "cc", package: "gcc" },
    Package { program: "git", package: "git" },
    Package { program: "fio", package: "fio" },
    Package { program: "rsync", package: "rsync" },
    Package { program: "python3", package: "python3" },
    Package { program: "fuser", package: "psmisc" },
    Package { program: "setfattr", package: "attr" },
    Package { program: "setfacl", package: "acl" },
    Package { program: "fusermount3", package: "fuse3" },
    Package { program: "mkfs.xfs", package: "xfsprogs" },
    Package { program: "sqlite3", package: "sqlite3" },
    Package { program: "stress-ng", package: "stress-ng" },
];

const POSTGRESQL: Package = Package { program: "pg_createcluster", package: "postgresql" };

/// What runs on a mount because people run it there.
const PROGRAM_PACKAGES: [Package; 7] = [
    POSTGRESQL,
    Package { program: "borg", package: "borgbackup" },
    Package { program: "restic", package: "restic" },
    Package { program: "npm", package: "npm" },
    Package { program: "ps", package: "procps" },
    Package { program: "nbdkit", package: "nbdkit" },
    Package { program: "nbdfuse", package: "libnbd-bin" },
];

/// What only the benchmark compares with.
const BENCH_PACKAGES: [Package; 2] = [Package { program: "mkfs.btrfs", package: "btrfs-progs" }, POSTGRESQL];

/// The runner of unit and simulator tests.
pub(crate) const NEXTEST: Tool = Tool { program: "cargo-nextest", package: "cargo-nextest", version: None };
/// Checks POSIX semantics on a mount.
pub(crate) const PJDFSTEST: Tool =
    Tool { program: "pjdfstest", package: "pjdfstest", version: Some("0.2.2") };

/// Does random things to a file and knows what must be in it.
pub(crate) const FSX: Tool = Tool { program: "fsx", package: "fsx", version: Some("0.3.2") };

/// Installs the Debian packages whose programs are missing, where that is possible.
///
/// A package that cannot be installed is no error here: the tests that need it skip themselves and
/// say so, and the list of allowed skips decides.
pub(crate) fn install_packages() {
    install(&PACKAGES);
}

/// The same for the programs that run on a mount.
pub(crate) fn install_program_packages() {
    install(&PROGRAM_PACKAGES);
}

/// The same for what the benchmark compares with; it leaves out what is not there.
pub(crate) fn install_bench_packages() {
    install(&BENCH_PACKAGES);
}

fn install(packages: &[Package]) {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !shell::is_installed(package.program))
        .map(|package| package.package)
        .collect();
    if missing.is_empty() {
        println!("set-up: every program is there");
        return;
    }
    if !is_root() || !shell::is_installed("apt-get") {
        println!("set-up: missing and not installable from here: {}", missing.join(" "));
        return;
    }
    println!("set-up: installing Debian packages {}", missing.join(" "));
    let install = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "--yes", "--quiet"];
    let install = [install.as_slice(), &["--no-install-recommends"], &missing].concat();
    let outcome = shell::run(&["apt-get", "update", "--quiet"]).and_then(|()| shell::run(&install));
    if let Err(error) = outcome {
        println!("set-up: going on without them: {error:#}");
    }
}

/// Builds and installs a tool that is missing.
pub(crate) fn install_tool(tool: &Tool) -> Result<()> {
    if shell::is_installed(tool.program) {
        return Ok(());
    }
    println!("set-up: installing {} with cargo", tool.package);
    let version = tool.version.map(|version| ["--version", version]);
    let line = ["cargo", "install", "--quiet", "--locked", tool.package];
    shell::run(&[line.as_slice(), version.as_ref().map_or(&[], |words| words.as_slice())].concat())
}

/// Whether root runs this.
pub(crate) fn is_root() -> bool {
    shell::output(&["id", "-u"]).is_ok_and(|id| id.trim() == "0")
}
