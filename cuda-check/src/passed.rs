//! Which sources have been assembled before, on disk.
//!
//! One empty file for each, named after the SHA-256 of NVRTC's version, the architecture and the
//! source. Only successes are kept: a failure is shown with its log each time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::properties::Architecture;

/// A folder of successes.
#[derive(Clone, Debug)]
pub struct Passed {
    folder: PathBuf,
    version: String,
}

impl Passed {
    /// Opens the folder, which is made if it is not there, for one version of NVRTC.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(folder: &Path, version: &str) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
            version: version.to_owned(),
        })
    }

    /// Whether `source` was assembled for `architecture` before.
    pub fn contains(&self, source: &str, architecture: Architecture) -> bool {
        self.file(source, architecture).exists()
    }

    /// Notes that `source` was assembled for `architecture`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn insert(&self, source: &str, architecture: Architecture) -> Result<()> {
        let file = self.file(source, architecture);
        fs::write(&file, []).with_context(|| format!("cannot write {}", file.display()))
    }

    fn file(&self, source: &str, architecture: Architecture) -> PathBuf {
        let mut hash = Sha256::new();
        hash.update(format!("{}\n{architecture}\n", self.version));
        hash.update(source);
        self.folder.join(format!("{:x}", hash.finalize()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_architecture_and_source_tell_results_apart() {
        let folder = tempfile::tempdir().unwrap();
        let passed = Passed::open(folder.path(), "13.5").unwrap();
        passed.insert("a", Architecture::Sm80).unwrap();
        assert!(passed.contains("a", Architecture::Sm80));
        assert!(!passed.contains("b", Architecture::Sm80));
        assert!(!passed.contains("a", Architecture::Sm90a));
        let newer = Passed::open(folder.path(), "13.6").unwrap();
        assert!(!newer.contains("a", Architecture::Sm80));
    }
}
