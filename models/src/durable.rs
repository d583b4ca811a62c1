//! Files and folders that appear whole or not at all.
//!
//! 1. Write beside the target, under a name that no reader looks for.
//! 2. Sync the contents, then every folder on the way.
//! 3. Rename over the target, sync the parent.
//!
//! A crash or a full disk before step 3 leaves the old state; what lies aside is removed at once,
//! or by the next writer.
//!
//! A file may have several writers at once, of one process or many: each has a name aside of its
//! own, and the last rename stands. A folder has one name aside, and so one writer at a time.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

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
    let (file, aside) = create_aside(path)?;
    let result = (|| {
        let mut file = BufWriter::with_capacity(1 << 20, file);
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
    aside: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl Unfinished {
    /// An empty file aside of `path`.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn create(path: &Path) -> io::Result<Self> {
        let (file, aside) = create_aside(path)?;
        Ok(Self {
            file,
            aside,
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
        fs::rename(&self.aside, &self.path)?;
        self.finished = true;
        sync_parent(&self.path)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.finished {
            // Whoever drops it has an error of its own to report.
            let _ = fs::remove_file(&self.aside);
        }
    }
}

/// Writes a folder through `fill`, which gets the path to fill, so that `path` is never seen
/// half-written. An existing `path` is replaced.
///
/// Its name aside is the same for all writers: the caller sees to it that there is one at a time.
///
/// # Errors
/// Whatever `fill` or the file system reports; `path` is then as it was.
pub fn write_folder<E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let aside = with_ending(path, ASIDE);
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

/// What [`write_folder`] removes beside a path: what is not finished yet, and what made room.
pub fn beside_folder(path: &Path) -> [PathBuf; 2] {
    [ASIDE, OLD].map(|ending| with_ending(path, ending))
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

/// Opens a new file aside of `path` that is this writer's alone, and removes those of killed ones.
///
/// A writer holds a lock on its file, which the system takes back when a process ends, however it
/// does: whoever gets the lock of a file that lies there knows that it was left. The id of the
/// process in its name does not tell, for another machine or container may have one of this id.
fn create_aside(path: &Path) -> io::Result<(File, PathBuf)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    remove_left(path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let aside = with_ending(path, &format!(".{}-{number}{ASIDE}", process::id()));
        let file = match options.open(&aside) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        let is_lost = match file.try_lock() {
            // Another writer may have taken it for left before it was locked.
            Ok(()) => !aside.exists(),
            Err(TryLockError::WouldBlock) => true,
            // Some network file systems have no locks; there, nobody takes it for left.
            Err(TryLockError::Error(_)) => false,
        };
        if !is_lost {
            return Ok((file, aside));
        }
    }
}

/// Removes what killed writers of a file left beside it. Where there are no locks, or the file is
/// not ours to write, nobody can tell, and it stays.
fn remove_left(path: &Path) {
    let (Some(target), Some(folder)) = (path.file_name(), folder_of(path)) else {
        return;
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !is_aside_of(&entry.file_name(), target) {
            continue;
        }
        let left = entry.path();
        // For writing: network file systems lock no other file exclusively.
        if let Ok(file) = OpenOptions::new().write(true).open(&left)
            && file.try_lock().is_ok()
        {
            // Under the lock: a writer that was about to take it then sees that the file is gone.
            let _ = fs::remove_file(&left);
        }
    }
}

/// True if a writer of the file `target` has, or had, a file of this name aside.
fn is_aside_of(name: &OsStr, target: &OsStr) -> bool {
    let (Some(name), Some(target)) = (name.to_str(), target.to_str()) else {
        return false;
    };
    let middle = name.strip_prefix(target);
    let Some(middle) = middle.and_then(|rest| rest.strip_suffix(ASIDE)) else {
        return false;
    };
    let is_number = |text: &str| text.parse::<u64>().is_ok();
    let own = middle.strip_prefix('.').and_then(|it| it.split_once('-'));
    // Earlier versions had one name for all writers, with nothing in between.
    middle.is_empty() || own.is_some_and(|(id, number)| is_number(id) && is_number(number))
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    folder_of(path).map_or(Ok(()), sync_folder)
}

/// The folder that a path lies in; the root lies in none.
fn folder_of(path: &Path) -> Option<&Path> {
    let parent = path.parent()?;
    let here = parent.as_os_str().is_empty();
    Some(if here { Path::new(".") } else { parent })
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

    /// All writers of a file had one name aside: the second emptied what the first had written.
    #[test]
    fn writers_of_one_file_do_not_touch_what_the_others_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut first = Unfinished::create(&path).unwrap();
        first.file().write_all(b"the first").unwrap();
        let mut second = Unfinished::create(&path).unwrap();
        second.file().write_all(b"second").unwrap();
        write_file::<io::Error>(&path, |out| {
            // One that gives up in the middle of another.
            drop(Unfinished::create(&path)?);
            out.write_all(b"third")
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        first.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"the first");
        second.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_killed_writers_of_a_file_left_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let left = ["file.part", "file.4294967295-7.part"];
        let others = [
            "file.txt.part",
            "file.txt.1-0.part",
            "file.1-x.part",
            "file.1-0",
            "other.1-0.part",
        ];
        for name in left.into_iter().chain(others) {
            fs::write(at(name), name).unwrap();
        }
        let live = Unfinished::create(&at("file")).unwrap();
        write_file::<io::Error>(&at("file"), |out| out.write_all(b"new")).unwrap();
        for name in left {
            assert!(!at(name).exists(), "{name}");
        }
        for name in others {
            assert_eq!(fs::read(at(name)).unwrap(), name.as_bytes());
        }
        live.finish().unwrap();
        let found = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(found, others.len() + 1);
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
