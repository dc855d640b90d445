//! Databases: one small durable transaction after the other.

use super::measure::{Bound, Quantity, Report};
use super::targets::{Ground, Kind, Target, run};
use super::{POOL_BYTES, verify};
use crate::shell;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

const KINDS: [Kind; 3] = [Kind::Aegis, Kind::Ext4, Kind::Btrfs];

/// Single-row transactions until the time is over; prints how many a second, and the rows there are.
const SQLITE: &str = "
import sqlite3, sys, time
base = sqlite3.connect(sys.argv[1], isolation_level=None)
base.execute('pragma journal_mode=wal')
base.execute('pragma synchronous=full')
base.execute('create table if not exists rows(id integer primary key, body blob)')
count, start = 0, time.monotonic()
while time.monotonic() - start < 4:
    base.execute('insert into rows(body) values(randomblob(100))')
    count += 1
print(count / (time.monotonic() - start), base.execute('select count(*) from rows').fetchone()[0])
";
const SQLITE_CHECK: &str = "
import sqlite3, sys
base = sqlite3.connect(sys.argv[1])
print(base.execute('pragma integrity_check').fetchone()[0], base.execute('select count(*) from rows').fetchone()[0])
";

pub(super) fn sqlite(ground: &Ground, report: &mut Report) -> Result<()> {
    if !shell::is_installed("python3") {
        println!("  skipped: python3 is not installed");
        return Ok(());
    }
    let mut targets = ground.targets(&KINDS, POOL_BYTES)?;
    let (name, mut rows) = ("SQLite, WAL, synchronous=FULL", String::new());
    let base = |target: &Target| target.place.join("base.db").to_string_lossy().into_owned();
    let figures = report.compare(&mut targets, &[Quantity { name, unit: "tx/s" }], |target, _| {
        target.settle()?;
        let printed = run(60, &["python3", "-c", SQLITE, &base(target)])?;
        let (rate, there) = printed.trim().split_once(' ').context("it prints two numbers")?;
        if target.kind == Kind::Aegis {
            there.clone_into(&mut rows);
        }
        Ok(vec![rate.parse()?])
    })?;
    report.bar("SQLite transactions, to ext4", Bound::AtLeast(0.6), figures.against(Kind::Ext4, 0));
    verify(report, name, &targets, |target| {
        let found = run(60, &["python3", "-c", SQLITE_CHECK, &base(target)])?;
        if found.trim() != format!("ok {rows}") {
            bail!("the database says {}, not ok {rows}", found.trim());
        }
        Ok(())
    });
    Ok(())
}

/// Accounts for each unit of pgbench's scale are 100,000.
const SCALE: &str = "10";
const SECONDS: &str = "8";
/// Whatever a transaction adds to an account it adds to its teller, branch and history.
const BALANCES: &str = "select (select sum(abalance) from pgbench_accounts) = all (array[
    (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches),
    (select sum(delta) from pgbench_history)])";

pub(super) fn pgbench(ground: &Ground, report: &mut Report) -> Result<()> {
    let text = "pgbench, 4 clients, to ext4";
    let Some(programs) = postgres_programs() else {
        println!("  skipped: PostgreSQL is not installed and could not be");
        report.bar(text, Bound::AtLeast(0.6), None);
        return Ok(());
    };
    let mut targets = ground.targets(&KINDS, POOL_BYTES)?;
    let scratch = ground.mounts.join("postgres");
    fs::create_dir_all(&scratch)?;
    let outcome = measure_pgbench(report, &mut targets, &programs, &scratch, text);
    let _ = fs::remove_dir_all(&scratch);
    outcome
}

fn measure_pgbench(
    report: &mut Report,
    targets: &mut [Target],
    programs: &Path,
    scratch: &Path,
    text: &str,
) -> Result<()> {
    for target in targets.iter() {
        Cluster::create(target, programs, scratch)?;
    }
    let name = "pgbench, 4 clients";
    let figures = report.compare(targets, &[Quantity { name, unit: "tx/s" }], |target, _| {
        target.settle()?;
        let cluster = Cluster::start(target, programs, scratch)?;
        let printed = cluster.run(
            "pgbench",
            &["--client=4", "--jobs=2", "--no-vacuum", &format!("--time={SECONDS}"), "postgres"],
        )?;
        let rate = printed
            .lines()
            .find_map(|line| line.strip_prefix("tps = "))
            .context("pgbench prints its rate")?;
        Ok(vec![rate.split_whitespace().next().unwrap_or_default().parse()?])
    })?;
    report.bar(text, Bound::AtLeast(0.6), figures.against(Kind::Ext4, 0));
    verify(report, name, targets, |target| {
        let cluster = Cluster::start(target, programs, scratch)?;
        let found =
            cluster.run("psql", &["--tuples-only", "--no-align", "--command", BALANCES, "postgres"])?;
        if found.trim() != "t" {
            bail!("the balances do not agree");
        }
        Ok(())
    });
    Ok(())
}

/// The folder of a PostgreSQL server's programs, the newest.
fn postgres_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin"));
    versions.filter(|folder| folder.join("initdb").is_file() && folder.join("pgbench").is_file()).max()
}

/// A server that runs on a target; dropping it stops it.
struct Cluster {
    programs: PathBuf,
    data: String,
    socket: String,
}

impl Cluster {
    fn of(target: &Target, programs: &Path, scratch: &Path) -> Self {
        Self {
            programs: programs.into(),
            data: target.place.join("postgres").to_string_lossy().into_owned(),
            socket: scratch.to_string_lossy().into_owned(),
        }
    }

    /// Makes a cluster and fills it.
    fn create(target: &Target, programs: &Path, scratch: &Path) -> Result<()> {
        let cluster = Self::of(target, programs, scratch);
        fs::create_dir_all(&cluster.data)?;
        let id =
            |flag: &str| -> Result<u32> { Ok(shell::output(&["id", flag, "postgres"])?.trim().parse()?) };
        for folder in [&cluster.data, &cluster.socket] {
            chown(folder, Some(id("-u")?), Some(id("-g")?))?;
        }
        let data = cluster.data.clone();
        cluster.run("initdb", &["--auth=trust", "--encoding=UTF8", "--locale=C", "--pgdata", &data])?;
        drop(cluster);
        let cluster = Self::start(target, programs, scratch)?;
        cluster.run("pgbench", &["--initialize", "--quiet", "--scale", SCALE, "postgres"])?;
        Ok(())
    }

    fn start(target: &Target, programs: &Path, scratch: &Path) -> Result<Self> {
        let cluster = Self::of(target, programs, scratch);
        let log = format!("{}/log", cluster.socket);
        let options = format!("-k {} -c listen_addresses=", cluster.socket);
        let data = cluster.data.clone();
        cluster
            .run("pg_ctl", &["start", "--wait", "--pgdata", &data, "--log", &log, "--options", &options])?;
        Ok(cluster)
    }

    /// Runs one of PostgreSQL's programs as its user.
    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let program = self.programs.join(program).to_string_lossy().into_owned();
        let host = format!("PGHOST={}", self.socket);
        // Its programs refuse to start where they may not look, and say a lot when all is well.
        let line = ["timeout", "180", "env", "--chdir=/", &host, "runuser", "-u", "postgres", "--", &program];
        let output = shell::command(&[line.as_slice(), arguments].concat()).output()?;
        if !output.status.success() {
            bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if Path::new(&self.data).join("postmaster.pid").exists() {
            let data = self.data.clone();
            let _ = self.run("pg_ctl", &["stop", "--wait", "--mode=fast", "--pgdata", &data]);
        }
    }
}
