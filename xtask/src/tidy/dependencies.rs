//! The dependencies: one registry, one version of Burn and CubeCL, both pinned.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use cargo_metadata::CargoOpt;
use toml::{Table, Value};

use super::licence::Licence;
use crate::workspace;

/// Where every crate comes from that is not ours.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Families of crates that must not come in two versions: their types would not be the same types.
fn is_pinned_family(package: &str) -> bool {
    let families = ["burn", "cubecl", "cubek"];
    families.iter().any(|family| {
        package == *family
            || package
                .strip_prefix(family)
                .is_some_and(|rest| rest.starts_with('-'))
    })
}

/// Burn and CubeCL are pinned with `=` in the workspace manifest.
pub(super) fn pins(manifest: &str) -> Result<Vec<String>> {
    let manifest: Table = manifest.parse().context("Cargo.toml is not TOML")?;
    let dependencies = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("dependencies"))
        .and_then(Value::as_table)
        .context("Cargo.toml has no [workspace.dependencies]")?;
    let unpinned = dependencies.iter().filter_map(|(name, value)| {
        let is_ours = value.get("path").is_some();
        let version = value
            .get("version")
            .unwrap_or(value)
            .as_str()
            .unwrap_or_default();
        let pinned = is_ours || !is_pinned_family(name) || version.starts_with('=');
        (!pinned).then(|| format!("Cargo.toml: {name} = \"{version}\" is not pinned with `=`"))
    });
    Ok(unpinned.collect())
}

/// Every crate in the lock file comes from crates.io or from this workspace.
pub(super) fn sources(lock: &str) -> Result<Vec<String>> {
    let foreign = packages(lock)?.into_iter().filter_map(|package| {
        let source = package.source.filter(|source| source != REGISTRY)?;
        Some(format!("Cargo.lock: {} comes from {source}", package.name))
    });
    Ok(foreign.collect())
}

/// No crate of Burn or CubeCL stands in the lock file twice.
pub(super) fn versions(lock: &str) -> Result<Vec<String>> {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages(lock)? {
        if is_pinned_family(&package.name) {
            versions
                .entry(package.name)
                .or_default()
                .push(package.version);
        }
    }
    let twice = versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1);
    Ok(twice
        .map(|(name, versions)| format!("Cargo.lock: {name} in versions {}", versions.join(", ")))
        .collect())
}

/// The licences of all crates that a build on this machine can reach with any feature.
pub(super) fn licences() -> Result<Vec<Licence>> {
    let metadata = workspace::metadata(CargoOpt::AllFeatures)?;
    let licence = |package: cargo_metadata::Package| Licence {
        package: format!("{} {}", package.name, package.version),
        expression: package.license,
    };
    Ok(metadata.packages.into_iter().map(licence).collect())
}

/// One `[[package]]` of the lock file.
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
}

fn packages(lock: &str) -> Result<Vec<Locked>> {
    let lock: Table = lock.parse().context("Cargo.lock is not TOML")?;
    let packages = lock
        .get("package")
        .and_then(Value::as_array)
        .context("no [[package]]")?;
    let locked = packages.iter().map(|package| {
        let field = |name: &str| package.get(name).and_then(Value::as_str).map(str::to_owned);
        Ok(Locked {
            name: field("name").context("a package without a name")?,
            version: field("version").context("a package without a version")?,
            source: field("source"),
        })
    });
    locked.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unpinned_burn_is_reported() {
        let manifest = r#"
            [workspace.dependencies]
            burn-nvfp4 = { path = "burn-nvfp4" }
            burn = { version = "=0.21.0", features = [] }
            burn-flex = "0.21.0"
            cubecl = { version = "0.10.0" }
            serde = "1"
        "#;
        assert_eq!(
            pins(manifest).unwrap(),
            [
                "Cargo.toml: burn-flex = \"0.21.0\" is not pinned with `=`",
                "Cargo.toml: cubecl = \"0.10.0\" is not pinned with `=`",
            ]
        );
    }

    const LOCK: &str = r#"
        [[package]]
        name = "burn-nvfp4"
        version = "0.1.0"
        [[package]]
        name = "burn-tensor"
        version = "0.21.0"
        source = "registry+https://github.com/rust-lang/crates.io-index"
        [[package]]
        name = "rand"
        version = "0.9.0"
        source = "registry+https://github.com/rust-lang/crates.io-index"
        [[package]]
        name = "rand"
        version = "0.10.0"
        source = "registry+https://github.com/rust-lang/crates.io-index"
    "#;

    fn locked(name: &str, version: &str, source: &str) -> String {
        format!("{LOCK}\n[[package]]\nname = '{name}'\nversion = '{version}'\nsource = '{source}'")
    }

    #[test]
    fn a_second_version_of_burn_is_reported_and_of_others_is_not() {
        assert_eq!(versions(LOCK).unwrap(), [""; 0]);
        assert_eq!(
            versions(&locked("burn-tensor", "0.20.0", REGISTRY)).unwrap(),
            ["Cargo.lock: burn-tensor in versions 0.21.0, 0.20.0"]
        );
        assert_eq!(
            versions(&locked("burnish", "0.20.0", REGISTRY)).unwrap(),
            [""; 0]
        );
    }

    #[test]
    fn another_source_is_reported() {
        assert_eq!(sources(LOCK).unwrap(), [""; 0]);
        let git = "git+https://example.org/burn#abc";
        assert_eq!(
            sources(&locked("burn-jit", "0.21.0", git)).unwrap(),
            [format!("Cargo.lock: burn-jit comes from {git}")]
        );
    }
}
