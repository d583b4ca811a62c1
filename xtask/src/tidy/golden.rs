//! The golden files are the ones that somebody else's code made: `SHA256SUMS` says so.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

/// The folder of golden files.
const FOLDER: &str = "tests/golden";
/// The list of their hashes, in the form of `sha256sum`.
const LIST: &str = "SHA256SUMS";

/// What a comparison found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hashes {
    /// Files compared.
    pub(super) files: usize,
    /// Files changed, unlisted or missing.
    pub(super) problems: Vec<String>,
}

/// Compares the golden files with their list.
pub(super) fn check(root: &Path) -> Result<Hashes> {
    let folder = root.join(FOLDER);
    let list = fs::read_to_string(folder.join(LIST))
        .with_context(|| format!("cannot read {FOLDER}/{LIST}"))?;
    Ok(compare(&list, &hashes(&folder)?))
}

/// Writes the list anew.
pub(super) fn write(root: &Path) -> Result<String> {
    let folder = root.join(FOLDER);
    let hashes = hashes(&folder)?;
    let list: String = hashes
        .iter()
        .map(|(path, hash)| format!("{hash}  {path}\n"))
        .collect();
    fs::write(folder.join(LIST), list).with_context(|| format!("cannot write {FOLDER}/{LIST}"))?;
    Ok(format!("{FOLDER}/{LIST}: {} files", hashes.len()))
}

fn compare(list: &str, found: &BTreeMap<String, String>) -> Hashes {
    let listed: BTreeMap<&str, &str> = list
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(h, path)| (path, h))
        .collect();
    let mut problems = Vec::new();
    for (path, hash) in found {
        match listed.get(path.as_str()) {
            None => problems.push(format!("{FOLDER}/{path}: not in {LIST}")),
            Some(listed) if listed != hash => {
                problems.push(format!(
                    "{FOLDER}/{path}: changed since it was listed in {LIST}"
                ));
            }
            Some(_) => {}
        }
    }
    let missing = listed.keys().filter(|path| !found.contains_key(**path));
    problems.extend(missing.map(|path| format!("{FOLDER}/{path}: listed in {LIST}, but missing")));
    Hashes {
        files: found.len(),
        problems,
    }
}

/// The hash of every file below `folder`, by its path from there.
fn hashes(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    for entry in WalkDir::new(folder) {
        let entry = entry.with_context(|| format!("cannot list {FOLDER}"))?;
        if !entry.file_type().is_file() || entry.file_name() == LIST {
            continue;
        }
        let bytes = fs::read(entry.path())
            .with_context(|| format!("cannot read {}", entry.path().display()))?;
        let path = entry
            .path()
            .strip_prefix(folder)?
            .to_string_lossy()
            .replace('\\', "/");
        let hash = Sha256::digest(bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        hashes.insert(path, hash);
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_unlisted_and_missing_files_are_reported() {
        let found = [("a", "1"), ("b", "2"), ("d", "4")];
        let found = found
            .map(|(path, hash)| (path.to_owned(), hash.to_owned()))
            .into();
        assert_eq!(
            compare("1  a\n3  b\n5  c\n", &found).problems,
            [
                "tests/golden/b: changed since it was listed in SHA256SUMS",
                "tests/golden/d: not in SHA256SUMS",
                "tests/golden/c: listed in SHA256SUMS, but missing",
            ]
        );
        let same = Hashes {
            files: 3,
            problems: Vec::new(),
        };
        assert_eq!(compare("1  a\n2  b\n4  d\n", &found), same);
    }

    #[test]
    fn the_hash_is_sha256() {
        // FIPS 180-4, the example "abc".
        let hash: String = Sha256::digest(b"abc")
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert!(hash.starts_with("ba7816bf8f01cfea414140de5dae2223"));
    }
}
