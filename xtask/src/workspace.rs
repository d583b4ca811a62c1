//! Where the workspace and the sources of its dependencies lie, asked from cargo.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::{CargoOpt, Metadata, MetadataCommand};

/// The folder of the root `Cargo.toml`: the parent of this package's folder.
pub(crate) fn root() -> Result<PathBuf> {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = package
        .parent()
        .context("xtask lies below the workspace root")?;
    Ok(root.to_owned())
}

/// The cargo that runs us, or the one on the path.
pub(crate) fn cargo() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// The resolved dependency graph with the features that `features` asks for, from the lock file
/// as it is.
pub(crate) fn metadata(features: CargoOpt) -> Result<Metadata> {
    let mut command = MetadataCommand::new();
    command
        .cargo_path(cargo())
        .current_dir(root()?)
        .features(features)
        .other_options(["--locked".to_owned()]);
    command.exec().context("cargo metadata failed")
}

/// The source folder of the one version of `package` in the lock file.
pub(crate) fn source_of(metadata: &Metadata, package: &str) -> Result<PathBuf> {
    let found: Vec<_> = metadata
        .packages
        .iter()
        .filter(|candidate| candidate.name == package)
        .collect();
    match found.as_slice() {
        [one] => {
            let manifest = one.manifest_path.as_std_path();
            let folder = manifest.parent().context("a manifest lies in a folder")?;
            Ok(folder.join("src"))
        }
        [] => bail!("the lock file has no package {package}"),
        several => bail!("the lock file has {} versions of {package}", several.len()),
    }
}
