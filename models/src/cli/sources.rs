//! The default text: Rust sources of the locked dependencies, found through `cargo metadata`.
//!
//! cargo has fetched them to build this command, so they are on every machine that runs it from a
//! checkout, and the lock file fixes their bytes. A fixed list of packages, in the order of the
//! list, keeps the text the same whatever else is locked.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cargo_metadata::MetadataCommand;

use burn_nvfp4_models::data::Corpus;

use super::Failure;

/// About 12 MB of Rust by many hands.
const PACKAGES: [&str; 24] = [
    "aho-corasick",
    "anyhow",
    "burn-autodiff",
    "burn-backend",
    "burn-core",
    "burn-flex",
    "burn-ndarray",
    "burn-nn",
    "burn-optim",
    "burn-tensor",
    "burn-train",
    "bytemuck",
    "clap_builder",
    "crossbeam-utils",
    "indexmap",
    "memchr",
    "ndarray",
    "num-traits",
    "plotters",
    "rayon",
    "rayon-core",
    "serde",
    "syn",
    "tokenizers",
];

/// The `.rs` files of the listed packages.
///
/// # Errors
/// One line that says to pass `--data` if the checkout or cargo is not there.
pub(crate) fn locked_dependencies() -> Result<Corpus, Failure> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let unavailable = |reason: String| {
        Failure::Error(format!(
            "no default data: {reason}; pass a text file or a folder with --data"
        ))
    };
    if !manifest.exists() {
        return Err(unavailable(format!(
            "{}: the checkout that this command was built from is gone",
            manifest.display()
        )));
    }
    let folders = package_folders(&manifest).map_err(unavailable)?;
    let is_rust = |path: &Path| path.extension().is_some_and(|extension| extension == "rs");
    let name = PathBuf::from("Rust sources of the locked dependencies");
    Corpus::in_folders(name, &folders, is_rust).map_err(Failure::error)
}

/// Where the listed packages lie.
fn package_folders(manifest: &Path) -> Result<Vec<PathBuf>, String> {
    let metadata = |offline: &[&str]| {
        let options = offline
            .iter()
            .map(|&option| option.to_owned())
            .collect::<Vec<_>>();
        MetadataCommand::new()
            .manifest_path(manifest)
            .other_options(options)
            .exec()
    };
    // First without the network; a checkout that only built this command may lack the packages of
    // other platforms and of tests, which cargo then fetches.
    let metadata = metadata(&["--locked", "--offline"])
        .or_else(|_| metadata(&["--locked"]))
        .map_err(|error| {
            let text = error.to_string();
            format!(
                "cargo metadata failed: {}",
                text.split_whitespace().collect::<Vec<_>>().join(" ")
            )
        })?;
    let mut folders = Vec::new();
    for name in PACKAGES {
        let mut versions: Vec<_> = metadata
            .packages
            .iter()
            .filter(|package| package.name.as_str() == name)
            .collect();
        versions.sort_by(|a, b| b.version.cmp(&a.version));
        let folder = versions
            .first()
            .and_then(|package| package.manifest_path.parent());
        folders.extend(folder.map(|folder| folder.as_std_path().to_owned()));
    }
    folders.retain(|folder| folder.is_dir());
    if folders.is_empty() {
        let hint = OsString::from(manifest);
        return Err(format!(
            "no package sources are unpacked for {}",
            hint.display()
        ));
    }
    Ok(folders)
}
