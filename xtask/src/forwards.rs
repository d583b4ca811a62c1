//! `cargo xtask forwards`: proves that the decorator forwards every method of every op trait.
//!
//! Burn's op traits have 218 methods with default bodies. A default that the decorator does not
//! forward compiles, and silently replaces the inner backend's own kernel. The compiler cannot
//! see that, so this command reads both sides as syntax:
//!
//! 1. [`source`]: the traits in the pinned burn-backend, found through cargo metadata;
//! 2. [`decorator`]: the impls for `Nvfp4<B>` in `burn-nvfp4/src/decorator`;
//! 3. [`compare`]: same names, same signatures, same arguments in the same order, except the
//!    table of overrides; no new supertrait.
//!
//! Without `--check` it prints the impls, to copy from when Burn is upgraded ([`mod@print`]).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "syn's enums are open and large; what is not looked for is not a forward"
)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cargo_metadata::CargoOpt;
use walkdir::WalkDir;

use crate::workspace;

mod signature;
mod source;
mod decorator;
mod compare;
mod print;
#[cfg(test)]
mod tests;

use compare::OVERRIDES;
use decorator::DecoratorFile;

/// Where the decorator lives.
const DECORATOR: &str = "burn-nvfp4/src/decorator";

/// Compares the decorator with burn-backend and returns the line to print.
pub(crate) fn check() -> Result<String> {
    let traits = source::read_traits(&burn_backend()?)?;
    let files = decorator_files(&workspace::root()?.join(DECORATOR))?;
    match compare::compare(&traits, &files, &OVERRIDES) {
        Ok(coverage) => Ok(format!(
            "{} traits, {} methods forwarded, {} overridden",
            coverage.traits, coverage.forwarded, coverage.overridden
        )),
        Err(problems) => bail!("{DECORATOR}:\n  {}", problems.join("\n  ")),
    }
}

/// The impls as `--check` expects them, before the overrides.
pub(crate) fn print() -> Result<String> {
    Ok(print::implementations(&source::read_traits(
        &burn_backend()?,
    )?))
}

fn burn_backend() -> Result<PathBuf> {
    let metadata = workspace::metadata(CargoOpt::SomeFeatures(Vec::new()))?;
    workspace::source_of(&metadata, "burn-backend")
}

fn decorator_files(folder: &Path) -> Result<Vec<DecoratorFile>> {
    let mut files = Vec::new();
    for entry in WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "rs")
        {
            let text = fs::read_to_string(entry.path())
                .with_context(|| format!("cannot read {}", entry.path().display()))?;
            let file = decorator::read(&text)
                .with_context(|| format!("cannot parse {}", entry.path().display()))?;
            files.push(file);
        }
    }
    Ok(files)
}
