//! Files and folders that appear whole or not at all.
//!
//! 1. Write beside the target, under a name that no reader looks for.
//! 2. Sync the contents, then every folder on the way.
//! 3. Rename over the target, sync the parent.
//!
//! A crash or a full disk before step 3 leaves the old state; what lies aside is removed at once,
//! or by the next writer.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Ending of names that are not finished yet.
pub const ASIDE: &str = ".part";
/// Ending of a folder that made room for its successor; it ends in [`ASIDE`] too.
const OLD: &str = ".old.part";

/// Writes a file through `fill` so that `path` is never seen half-written.
///
/// # Errors
/// Whatever `fill` or the file system reports; `path` is then as it was.
pub fn write_file<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<(), E>,
) -> Result<(), E> {
    let aside = aside(path);
    let result = (|| {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&aside)?);
        fill(&mut file)?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_parent(path)?;
        Ok(())
    })();
    if result.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&aside);
    }
    result
}

/// A file that is written piece by piece and has its name only once [`Self::finish`] gives it.
///
/// Dropped before, it is removed.
#[derive(Debug)]
pub struct Unfinished {
    file: File,
    path: PathBuf,
    finished: bool,
}

impl Unfinished {
    /// An empty file aside of `path`.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(aside(path))?,
            path: path.to_owned(),
            finished: false,
        })
    }

    /// The file, to be written to.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Syncs the file and gives it its name.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(aside(&self.path), &self.path)?;
        self.finished = true;
        sync_parent(&self.path)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // Whoever drops it has an error of its own to report.
            let _ = fs::remove_file(aside(&self.path));
        }
    }
}

/// Writes a folder through `fill`, which gets the path to fill, so that `path` is never seen
/// half-written. An existing `path` is replaced.
///
/// # Errors
/// Whatever `fill` or the file system reports; `path` is then as it was.
pub fn write_folder<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let aside = aside(path);
    let result = (|| {
        if aside.exists() {
            fs::remove_dir_all(&aside)?;
        }
        fs::create_dir_all(&aside)?;
        fill(&aside)?;
        sync_folder(&aside)?;
        if path.exists() {
            // A folder cannot be renamed over a full one. The old one steps aside under a name
            // that no reader takes for a finished folder, so a crash in between loses no bytes.
            let old = with_ending(path, OLD);
            if old.exists() {
                fs::remove_dir_all(&old)?;
            }
            fs::rename(path, &old)?;
            fs::rename(&aside, path)?;
            fs::remove_dir_all(&old)?;
        } else {
            fs::rename(&aside, path)?;
        }
        sync_parent(path)?;
        Ok(())
    })();
    if result.is_err() {
        let _ = fs::remove_dir_all(&aside);
    }
    result
}

/// Writes a file inside a folder that [`write_folder`] is filling, synced.
///
/// # Errors
/// What the file system reports.
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Clears up what a killed [`write_folder`] left under a name that ends in [`ASIDE`]: half a folder
/// goes, and an old one whose successor never came gets its place back.
///
/// # Errors
/// What the file system reports.
pub fn recover_folder(left: &Path) -> io::Result<()> {
    let name = left.to_string_lossy();
    match name.strip_suffix(OLD).map(Path::new) {
        Some(path) if !path.exists() => {
            fs::rename(left, path)?;
            sync_parent(path)
        }
        Some(_) | None => fs::remove_dir_all(left),
    }
}

/// Makes a folder, and those above it, that a power failure does not take away again.
///
/// # Errors
/// What the file system reports.
pub fn create_folder(path: &Path) -> io::Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|at| !at.exists()).collect();
    fs::create_dir_all(path)?;
    missing.into_iter().try_for_each(sync_parent)
}

fn aside(path: &Path) -> PathBuf {
    with_ending(path, ASIDE)
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_folder(Path::new(".")),
        Some(parent) => sync_folder(parent),
        None => Ok(()),
    }
}

/// Makes a rename inside the folder last. Only Unix opens folders; elsewhere the rename has to do.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(path)?.sync_all()
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_writer_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_file::<io::Error>(&path, |out| out.write_all(b"old")).unwrap();
        let error = write_file::<io::Error>(&path, |out| {
            out.write_all(b"new")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_unfinished_file_leaves_nothing_and_a_finished_one_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = Unfinished::create(&path).unwrap();
        file.file().write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut file = Unfinished::create(&path).unwrap();
        file.file().write_all(b"whole").unwrap();
        file.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failing_writer_leaves_the_old_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder");
        write_folder::<io::Error>(&path, |at| write_synced(&at.join("a"), b"old")).unwrap();
        let error = write_folder::<io::Error>(&path, |at| {
            write_synced(&at.join("a"), b"new")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(error.is_err());
        assert_eq!(fs::read(path.join("a")).unwrap(), b"old");
        write_folder::<io::Error>(&path, |at| write_synced(&at.join("b"), b"new")).unwrap();
        assert_eq!(fs::read(path.join("b")).unwrap(), b"new");
        assert!(!path.join("a").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_kill_leaves_is_cleared_and_an_old_folder_without_successor_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (left, also) in [
            ("half.part", None),
            ("lost.old.part", None),
            ("kept.old.part", Some("kept")),
        ] {
            for name in [Some(left), also].into_iter().flatten() {
                fs::create_dir(at(name)).unwrap();
                fs::write(at(name).join("name"), name).unwrap();
            }
            recover_folder(&at(left)).unwrap();
            assert!(!at(left).exists(), "{left}");
        }
        assert!(!at("half").exists());
        assert_eq!(fs::read(at("lost/name")).unwrap(), b"lost.old.part");
        assert_eq!(fs::read(at("kept/name")).unwrap(), b"kept");
    }
}
