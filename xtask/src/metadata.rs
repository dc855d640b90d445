//! What cargo says about packages.

use crate::shell;
use anyhow::{Context, Result};
use serde_json::Value;

/// One package as `cargo metadata` lists it.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The licence expression of its manifest.
    pub(crate) licence: Option<String>,
    /// Whether it lives in this repository.
    pub(crate) is_ours: bool,
    /// Whether it is one of the crates the layers are about, not a tool.
    pub(crate) is_room: bool,
    pub(crate) dependencies: Vec<Dependency>,
}

#[derive(Debug)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) is_dev: bool,
}

/// The packages of this workspace.
pub(crate) fn workspace() -> Result<Vec<Package>> {
    read(&["cargo", "metadata", "--no-deps", "--format-version", "1"])
}

/// The packages of this workspace and all they depend on, on any platform.
pub(crate) fn all() -> Result<Vec<Package>> {
    read(&["cargo", "metadata", "--all-features", "--format-version", "1"])
}

fn read(line: &[&str]) -> Result<Vec<Package>> {
    parse(&shell::output(line)?).context("cargo metadata answered something unexpected")
}

fn parse(text: &str) -> Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(text)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    packages.iter().map(package).collect()
}

fn package(value: &Value) -> Result<Package> {
    let text = |field: &str| value[field].as_str().map(str::to_owned);
    let dependencies = value["dependencies"].as_array().context("no dependencies")?;
    let manifest = text("manifest_path").unwrap_or_default();
    let folders: Vec<&str> = manifest.rsplit('/').collect();
    let is_ours = value["source"].is_null();
    Ok(Package {
        name: text("name").context("no name")?,
        version: text("version").context("no version")?,
        licence: text("license"),
        is_ours,
        is_room: is_ours && folders.get(2) == Some(&"crates"),
        dependencies: dependencies
            .iter()
            .map(|dependency| Dependency {
                name: dependency["name"].as_str().unwrap_or_default().to_owned(),
                is_dev: dependency["kind"] == "dev",
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read() {
        let text = r#"{"packages": [{"name": "aegisfs-kv", "version": "0.1.0", "license": "MIT",
            "source": null, "manifest_path": "/x/crates/kv/Cargo.toml",
            "dependencies": [{"name": "redb", "kind": null}, {"name": "proptest", "kind": "dev"}]}]}"#;
        let packages = parse(text).expect("valid");
        assert!(packages[0].is_room && packages[0].is_ours);
        assert!(!packages[0].dependencies[0].is_dev && packages[0].dependencies[1].is_dev);
        assert!(parse("{}").is_err() && parse("").is_err());
    }
}
