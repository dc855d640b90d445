//! Settings: what a flag, the environment, the configuration file or else the program itself says.

use crate::failure::{Exit, Failure};
use crate::places;
use aegisfs_base::units::parse_size;
use aegisfs_pool::ReadBack;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Names the configuration file.
const CONFIG: &str = "AEGISFS_CONFIG";

/// What a setting's text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Switch,
    Number,
    /// A number of bytes, also as a size such as `64M`.
    Bytes,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// Of what the kernel may or may not have.
const WAYS: Kind = Kind::Choice(&["auto", "on", "off"]);

/// In seconds, the longest that anything is put off.
const YEAR: u64 = 366 * 86_400;

/// A setting that there is.
struct Key {
    section: &'static str,
    name: &'static str,
    kind: Kind,
    built_in: u64,
    min: u64,
    max: u64,
}

/// Every setting, in the order of the manual.
const KEYS: [Key; 21] = [
    Key { section: "mount", name: "writeback", kind: Kind::Switch, built_in: 1, min: 0, max: 1 },
    Key {
        section: "mount",
        name: "verify",
        kind: Kind::Choice(&["off", "sample", "full"]),
        built_in: 0,
        min: 0,
        max: 2,
    },
    Key { section: "mount", name: "io_uring", kind: WAYS, built_in: 0, min: 0, max: 2 },
    Key { section: "mount", name: "fuseblk", kind: WAYS, built_in: 0, min: 0, max: 2 },
    Key { section: "mount", name: "idle_class", kind: Kind::Switch, built_in: 1, min: 0, max: 1 },
    Key { section: "flush", name: "settle_ms", kind: Kind::Number, built_in: 500, min: 10, max: 60_000 },
    Key { section: "flush", name: "age_max_ms", kind: Kind::Number, built_in: 5000, min: 100, max: 600_000 },
    Key {
        section: "flush",
        name: "dirty_bytes_max",
        kind: Kind::Bytes,
        built_in: 64 << 20,
        min: 8 << 20,
        max: 64 << 30,
    },
    Key { section: "log", name: "sync_interval_ms", kind: Kind::Number, built_in: 500, min: 1, max: 60_000 },
    Key {
        section: "log",
        name: "sync_transactions",
        kind: Kind::Number,
        built_in: 3000,
        min: 1,
        max: 1 << 20,
    },
    Key { section: "checkpoint", name: "interval_s", kind: Kind::Number, built_in: 60, min: 1, max: 86_400 },
    Key {
        section: "clean",
        name: "intensity",
        kind: Kind::Choice(&["low", "medium", "high"]),
        built_in: 1,
        min: 0,
        max: 2,
    },
    Key { section: "clean", name: "bandwidth_bytes", kind: Kind::Bytes, built_in: 0, min: 0, max: 1 << 40 },
    Key { section: "trim", name: "background", kind: Kind::Switch, built_in: 1, min: 0, max: 1 },
    Key {
        section: "trim",
        name: "batch_bytes",
        kind: Kind::Bytes,
        built_in: 256 << 20,
        min: 1 << 20,
        max: 1 << 40,
    },
    Key { section: "trim", name: "settle_s", kind: Kind::Number, built_in: 10, min: 0, max: 86_400 },
    Key { section: "trim", name: "interval_s", kind: Kind::Number, built_in: 86_400, min: 0, max: YEAR },
    Key { section: "orphans", name: "interval_s", kind: Kind::Number, built_in: 21_600, min: 0, max: YEAR },
    Key {
        section: "orphans",
        name: "older_than_s",
        kind: Kind::Number,
        built_in: 86_400,
        min: 60,
        max: YEAR,
    },
    Key {
        section: "cache",
        name: "chunk_bytes",
        kind: Kind::Bytes,
        built_in: 96 << 20,
        min: 1 << 20,
        max: 1 << 40,
    },
    Key {
        section: "cache",
        name: "metadata_bytes",
        kind: Kind::Bytes,
        built_in: 96 << 20,
        min: 1 << 20,
        max: 1 << 40,
    },
];

impl Key {
    fn full(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    fn variable(&self) -> String {
        format!("AEGISFS_{}_{}", self.section, self.name).to_uppercase()
    }

    fn parse(&self, text: &str) -> Result<u64, String> {
        let value = match (self.kind, text) {
            (Kind::Switch, "true" | "on" | "1") => Some(1),
            (Kind::Switch, "false" | "off" | "0") => Some(0),
            (Kind::Switch, _) => return Err(format!("'{text}' is neither true nor false")),
            (Kind::Number, _) => text.parse().ok(),
            (Kind::Bytes, _) => parse_size(text),
            (Kind::Choice(words), _) => words.iter().position(|word| *word == text).map(|n| n as u64),
        };
        let value = value.ok_or_else(|| match self.kind {
            Kind::Bytes => format!("'{text}' is not a size"),
            Kind::Choice(words) => format!("'{text}' is none of {}", words.join(", ")),
            _ => format!("'{text}' is not a number"),
        })?;
        if value < self.min || value > self.max {
            return Err(format!("{value} is not within {} and {}", self.min, self.max));
        }
        Ok(value)
    }
}

/// Where a value comes from; a later one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    BuiltIn,
    File,
    Environment,
    Flag,
}

impl Source {
    const fn name(self) -> &'static str {
        match self {
            Self::BuiltIn => "built-in",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        }
    }
}

/// Whether something is used that the kernel may or may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// If the kernel has it.
    Auto,
    /// Or else no mount.
    On,
    /// Never.
    Off,
}

/// The settings in force.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    values: [(u64, Source); KEYS.len()],
    /// The configuration file that was read.
    file: Option<PathBuf>,
}

impl Settings {
    /// Reads the file, the environment and then the flags, which are `section.key=value`.
    ///
    /// # Errors
    /// Names the first key that is not known, with the likeliest one that is, or the first wrong value.
    pub(crate) fn load(config: Option<&Path>, flags: &[String]) -> Result<Self, Failure> {
        let mut settings = Self::built_in();
        let named = config.map(Path::to_path_buf).or_else(|| std::env::var_os(CONFIG).map(PathBuf::from));
        let file = named.clone().or_else(|| places::configs().into_iter().find(|path| path.exists()));
        if let Some(path) = file {
            let text = std::fs::read_to_string(&path).map_err(|error| {
                let exit =
                    if error.kind() == std::io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failed };
                let message = format!("the configuration {} cannot be read: {error}", path.display());
                Failure::new("E_CONFIG", exit, message)
            })?;
            settings.take_file(&text).map_err(|(message, hint)| {
                let failure = Failure::new("E_CONFIG", Exit::Usage, format!("{}: {message}", path.display()));
                Failure { hint, ..failure }
            })?;
            settings.file = Some(path);
        }
        for key in &KEYS {
            if let Some(text) = std::env::var_os(key.variable()) {
                let taken = settings.take(&key.full(), &text.to_string_lossy(), Source::Environment);
                taken.map_err(|(what, _)| Failure::usage(format!("{}: {what}", key.variable())))?;
            }
        }
        for flag in flags {
            let (name, text) = flag
                .split_once('=')
                .ok_or_else(|| Failure::usage(format!("'{flag}' is not of the form section.key=value")))?;
            settings
                .take(name.trim(), text.trim(), Source::Flag)
                .map_err(|(message, hint)| Failure { hint, ..Failure::usage(message) })?;
        }
        Ok(settings)
    }

    fn built_in() -> Self {
        Self { values: KEYS.map(|key| (key.built_in, Source::BuiltIn)), file: None }
    }

    /// Takes everything from a file's text.
    fn take_file(&mut self, text: &str) -> Result<(), (String, Option<String>)> {
        let sections: toml::Table =
            text.parse().map_err(|error: toml::de::Error| (error.to_string(), None))?;
        for (section, content) in &sections {
            let toml::Value::Table(content) = content else {
                return Err((format!("'{section}' is not within a section"), nearest(section)));
            };
            if !KEYS.iter().any(|key| key.section == section) {
                return Err((format!("section [{section}] is not known"), nearest(section)));
            }
            for (name, value) in content {
                let text = match value {
                    toml::Value::String(text) => text.clone(),
                    toml::Value::Integer(number) => number.to_string(),
                    toml::Value::Boolean(switch) => switch.to_string(),
                    _ => return Err((format!("{section}.{name} is neither text, number nor switch"), None)),
                };
                self.take(&format!("{section}.{name}"), &text, Source::File)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &str, text: &str, source: Source) -> Result<(), (String, Option<String>)> {
        let place = KEYS.iter().position(|key| key.full() == name);
        let place = place.ok_or_else(|| (format!("setting '{name}' is not known"), nearest(name)))?;
        let value = KEYS[place].parse(text).map_err(|what| (format!("{name}: {what}"), None))?;
        self.values[place] = (value, source);
        Ok(())
    }

    fn number(&self, name: &str) -> u64 {
        let place = KEYS.iter().position(|key| key.full() == name).expect("it stands in the table");
        self.values[place].0
    }

    /// Whether the kernel may keep written bytes; `given` is what the mount's own options say.
    pub(crate) fn writeback(&mut self, given: Option<bool>) -> bool {
        if let Some(given) = given {
            self.values[0] = (u64::from(given), Source::Flag);
        }
        self.number("mount.writeback") == 1
    }

    /// Which writes are read back, where the mount's own options say so.
    pub(crate) fn verify(&mut self, given: &str) -> Result<(), Failure> {
        let taken = self.take("mount.verify", given, Source::Flag);
        taken.map_err(|(message, hint)| Failure { hint, ..Failure::usage(message) })
    }

    /// Whether freed slots are discarded by themselves, as the mount's own options say.
    pub(crate) fn discard(&mut self, given: bool) -> Result<(), Failure> {
        let taken = self.take("trim.background", if given { "true" } else { "false" }, Source::Flag);
        taken.map_err(|(message, hint)| Failure { hint, ..Failure::usage(message) })
    }

    /// Whether requests come through io_uring; `given` is what the mount's own options say.
    pub(crate) fn io_uring(&mut self, given: Option<&str>) -> Result<Wanted, Failure> {
        self.wanted("mount.io_uring", given)
    }

    /// Whether a block device is mounted as one; `given` is what the mount's own options say.
    pub(crate) fn fuseblk(&mut self, given: Option<&str>) -> Result<Wanted, Failure> {
        self.wanted("mount.fuseblk", given)
    }

    /// Whether threads of io_uring may have the idle scheduling class.
    pub(crate) fn idle_class(&self) -> bool {
        self.number("mount.idle_class") == 1
    }

    fn wanted(&mut self, name: &str, given: Option<&str>) -> Result<Wanted, Failure> {
        if let Some(given) = given {
            let taken = self.take(name, given, Source::Flag);
            taken.map_err(|(message, hint)| Failure { hint, ..Failure::usage(message) })?;
        }
        Ok([Wanted::Auto, Wanted::On, Wanted::Off][self.number(name) as usize])
    }

    /// For the filesystem.
    pub(crate) fn fs_options(&self) -> aegisfs_fs::FsOptions {
        aegisfs_fs::FsOptions {
            dirty_bytes_max: self.number("flush.dirty_bytes_max"),
            settle: Duration::from_millis(self.number("flush.settle_ms")),
            age_max: Duration::from_millis(self.number("flush.age_max_ms")),
            ..aegisfs_fs::FsOptions::default()
        }
    }

    /// For the store.
    pub(crate) fn store_options(&self) -> aegisfs_store::StoreOptions {
        aegisfs_store::StoreOptions {
            chunk_cache_bytes: self.number("cache.chunk_bytes"),
            metadata_cache_bytes: self.number("cache.metadata_bytes") as usize,
            read_back: [ReadBack::Off, ReadBack::Sample, ReadBack::Full]
                [self.number("mount.verify") as usize],
            trim: aegisfs_store::TrimOptions {
                background: self.number("trim.background") == 1,
                batch_bytes: self.number("trim.batch_bytes"),
                settle: Duration::from_secs(self.number("trim.settle_s")),
            },
            ..aegisfs_store::StoreOptions::default()
        }
    }

    /// How much the cleaner may take at first.
    pub(crate) fn cleaning_intensity(&self) -> aegisfs_store::Intensity {
        aegisfs_store::Intensity::ALL[self.number("clean.intensity") as usize]
    }

    /// Bytes that the cleaner moves in a second at most; 0 is no limit.
    pub(crate) fn cleaning_bandwidth(&self) -> u64 {
        self.number("clean.bandwidth_bytes")
    }

    /// What is done by itself once in a while.
    pub(crate) fn upkeep(&self) -> aegisfs_store::UpkeepOptions {
        aegisfs_store::UpkeepOptions {
            orphans_every: Duration::from_secs(self.number("orphans.interval_s")),
            orphans_older_than: Duration::from_secs(self.number("orphans.older_than_s")),
            trim_every: Duration::from_secs(self.number("trim.interval_s")),
        }
    }

    /// For the store's service thread.
    pub(crate) fn intervals(&self) -> aegisfs_store::Intervals {
        aegisfs_store::Intervals {
            log: Duration::from_millis(self.number("log.sync_interval_ms")),
            checkpoint: Duration::from_secs(self.number("checkpoint.interval_s")),
            log_transactions: self.number("log.sync_transactions") as usize,
        }
    }

    /// The values in force, and where each comes from.
    pub(crate) fn describe(&self) -> Value {
        let mut sections = Map::new();
        for (key, (value, source)) in KEYS.iter().zip(self.values) {
            let value = match key.kind {
                Kind::Switch => json!(value == 1),
                Kind::Choice(words) => json!(words[value as usize]),
                Kind::Number | Kind::Bytes => json!(value),
            };
            let section = sections.entry(key.section).or_insert_with(|| json!({}));
            section[key.name] = json!({ "value": value, "source": source.name() });
        }
        Value::Object(sections)
    }

    /// The configuration file that was read.
    pub(crate) fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

/// A hint with the known name that is most like this one, if one is like it at all.
fn nearest(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let known = KEYS.iter().flat_map(|key| [key.full(), key.section.to_owned()]);
    // A key that stands in the wrong section is meant by its last part.
    let last = name.rsplit('.').next().unwrap_or(&name);
    let moved = KEYS.iter().find(|key| key.name == last).map(Key::full);
    let alike = known
        .map(|known| (distance(&name, &known), known))
        .min()
        .filter(|(distance, known)| *distance * 3 <= known.len())
        .map(|(_, known)| known);
    moved.or(alike).map(|known| format!("did you mean {known}?"))
}

/// How many letters have to be put in, taken out or changed to make one word of another.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (n, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = n + 1;
        for (m, b) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[m + 1];
            row[m + 1] = changed.min(row[m] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_sources_win_and_the_built_in_values_are_those_of_the_rooms() {
        let mut settings = Settings::built_in();
        assert_eq!(settings.fs_options().settle, aegisfs_fs::FsOptions::default().settle);
        assert_eq!(settings.fs_options().dirty_bytes_max, aegisfs_fs::FsOptions::default().dirty_bytes_max);
        let intervals = aegisfs_store::Intervals::default();
        assert_eq!(settings.intervals().log, intervals.log);
        assert_eq!(settings.intervals().checkpoint, intervals.checkpoint);
        assert_eq!(settings.intervals().log_transactions, intervals.log_transactions);
        let store = aegisfs_store::StoreOptions::default();
        assert_eq!(settings.store_options().chunk_cache_bytes, store.chunk_cache_bytes);
        assert_eq!(settings.store_options().trim, store.trim);
        assert_eq!(settings.upkeep(), aegisfs_store::UpkeepOptions::default());
        assert_eq!(settings.store_options().metadata_cache_bytes, store.metadata_cache_bytes);
        settings
            .take_file("[flush]\nsettle_ms = 100\ndirty_bytes_max = \"32M\"\n[mount]\nwriteback = false\n")
            .unwrap();
        assert!(!settings.clone().writeback(None) && settings.clone().writeback(Some(true)));
        assert_eq!(settings.fs_options().dirty_bytes_max, 32 << 20);
        settings.take("flush.settle_ms", "200", Source::Flag).unwrap();
        assert_eq!(settings.describe()["flush"]["settle_ms"], json!({ "value": 200, "source": "flag" }));
        assert_eq!(settings.describe()["mount"]["writeback"], json!({ "value": false, "source": "file" }));
    }

    /// The example that is packaged names every key with its built-in value, each behind a comment sign.
    #[test]
    fn the_packaged_example_is_complete() {
        let example = include_str!("../../../packaging/aegisfs.toml");
        let mut settings = Settings::built_in();
        settings.take_file(example).unwrap();
        assert!(settings.values.iter().all(|(_, source)| *source == Source::BuiltIn));
        let active: String = example
            .lines()
            .map(|line| line.strip_prefix('#').unwrap_or(line).trim_start())
            .fold(String::new(), |text, line| {
                if line.contains(" = ") || line.starts_with('[') { text + line + "\n" } else { text }
            });
        settings.take_file(&active).unwrap();
        for (key, (value, source)) in KEYS.iter().zip(settings.values) {
            assert_eq!((value, source), (key.built_in, Source::File), "{}", key.full());
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_what_may_be_meant() {
        let wrong = |text: &str| Settings::built_in().take_file(text).unwrap_err();
        let (message, hint) = wrong("[flush]\nsetle_ms = 1\n");
        assert_eq!(message, "setting 'flush.setle_ms' is not known");
        assert_eq!(hint.unwrap(), "did you mean flush.settle_ms?");
        assert_eq!(wrong("[flsh]\na = 1\n").1.unwrap(), "did you mean flush?");
        assert_eq!(wrong("settle_ms = 1\n").1.unwrap(), "did you mean flush.settle_ms?");
        assert_eq!(wrong("[log]\nsettle_ms = 1\n").1.unwrap(), "did you mean flush.settle_ms?");
        assert_eq!(wrong("[cheese]\n").1, None);
        assert!(wrong("[flush]\nsettle_ms = 1\n").0.contains("not within 10 and 60000"));
        assert!(wrong("[flush]\nsettle_ms = \"soon\"\n").0.contains("not a number"));
        assert!(wrong("[cache]\nchunk_bytes = \"big\"\n").0.contains("not a size"));
        assert!(wrong("[mount]\nwriteback = 7\n").0.contains("neither true nor false"));
        assert!(wrong("[flush\n").0.contains("TOML"));
    }
}
