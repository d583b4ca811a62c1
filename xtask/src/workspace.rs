//! Where the workspace and the sources of its dependencies lie, asked from cargo.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// The folder that cargo builds into.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let mut command = MetadataCommand::new();
    command.cargo_path(cargo()).current_dir(root()?).no_deps();
    let metadata = command.exec().context("cargo metadata failed")?;
    Ok(metadata.target_directory.into())
}

/// `$XDG_CACHE_HOME/burn-nvfp4`, or below `~/.cache`: for what is fetched once and is not part of
/// the repository.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let is_set = |value: &OsString| !value.is_empty();
    let caches = env::var_os("XDG_CACHE_HOME")
        .filter(is_set)
        .map(PathBuf::from)
        .or_else(|| {
            let home = env::var_os("HOME").filter(is_set)?;
            Some(Path::new(&home).join(".cache"))
        })
        .context("neither XDG_CACHE_HOME nor HOME says where downloads may be kept")?;
    Ok(caches.join("burn-nvfp4"))
}

/// The cargo that runs us, or the one on the path.
pub(crate) fn cargo() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// The dependencies that a build for this machine reaches with `features`, from the lock file as it
/// is. Those of other platforms are left out, so that they need not be downloaded.
pub(crate) fn metadata(features: CargoOpt) -> Result<Metadata> {
    let mut command = MetadataCommand::new();
    command
        .cargo_path(cargo())
        .current_dir(root()?)
        .features(features)
        .other_options([
            "--locked".to_owned(),
            format!("--filter-platform={}", host()?),
        ]);
    command.exec().context("cargo metadata failed")
}

/// The target triple of this machine.
fn host() -> Result<String> {
    let output = Command::new("rustc")
        .arg("-vV")
        .output()
        .context("cannot start rustc")?;
    let text = String::from_utf8(output.stdout).context("rustc -vV is not text")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
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
