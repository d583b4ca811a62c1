//! `cargo xtask tidy`: what the compiler and clippy do not see.
//!
//! Each rule is a function from sources to problems, in one of four files: [`style`] (form of a
//! file), [`layers`] (who may use whom), [`dependencies`] (the lock file and the licences),
//! [`golden`] (the hashes of golden files). None of them changes anything; only
//! `--write-golden-hashes` does, on purpose and by name.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use crate::workspace;

mod style;
mod layers;
mod licence;
mod dependencies;
mod golden;

/// Folders of the workspace that hold Rust sources.
const PACKAGES: [&str; 6] = [
    "burn-nvfp4",
    "models",
    "tests",
    "fuzz",
    "cuda-check",
    "xtask",
];

/// A source file of the workspace.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    /// Path from the workspace root, with `/`.
    pub(crate) path: String,
    /// Its text.
    pub(crate) text: String,
}

impl SourceFile {
    /// The lines of product code with their numbers: without comments, and up to the unit tests.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let product = if self.is_test() { 0 } else { usize::MAX };
        self.text
            .lines()
            .enumerate()
            .take(product)
            .take_while(|(_, line)| !line.starts_with("mod tests"))
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }

    /// True for files that are only compiled into tests.
    pub(crate) fn is_test(&self) -> bool {
        self.path.ends_with("/tests.rs") || self.path.contains("/tests/")
    }
}

/// The identifiers of a line of code.
pub(crate) fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// Runs every rule and returns the line to print.
pub(crate) fn check() -> Result<String> {
    let root = workspace::root()?;
    let sources = read_sources(&root)?;
    let mut problems = Vec::new();
    for rule in style::RULES.iter().chain(layers::RULES) {
        problems.extend(sources.iter().flat_map(rule));
    }
    let manifest = read(&root.join("Cargo.toml"))?;
    let lock = read(&root.join("Cargo.lock"))?;
    problems.extend(dependencies::pins(&manifest)?);
    problems.extend(dependencies::sources(&lock)?);
    problems.extend(dependencies::versions(&lock)?);
    let packages = dependencies::licences()?;
    problems.extend(licence::problems(&packages));
    let hashes = golden::check(&root)?;
    problems.extend(hashes.problems);
    if !problems.is_empty() {
        bail!("{} problems\n  {}", problems.len(), problems.join("\n  "));
    }
    Ok(format!(
        "{} source files, {} licences, {} golden files",
        sources.len(),
        packages.len(),
        hashes.files
    ))
}

/// Writes the hashes of the golden files as they are now.
pub(crate) fn write_golden_hashes() -> Result<String> {
    golden::write(&workspace::root()?)
}

fn read_sources(root: &Path) -> Result<Vec<SourceFile>> {
    let mut sources = Vec::new();
    for package in PACKAGES {
        for entry in WalkDir::new(root.join(package)).sort_by_file_name() {
            let entry = entry.with_context(|| format!("cannot list {package}"))?;
            if entry
                .path()
                .extension()
                .is_some_and(|extension| extension == "rs")
            {
                let path = entry
                    .path()
                    .strip_prefix(root)?
                    .to_string_lossy()
                    .replace('\\', "/");
                sources.push(SourceFile {
                    path,
                    text: read(entry.path())?,
                });
            }
        }
    }
    Ok(sources)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
