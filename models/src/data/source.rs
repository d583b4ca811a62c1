//! Which files a run reads: one text file, or every text file below some folders.
//!
//! A file is text if it is valid UTF-8 without a NUL byte. Names that start with a dot are hidden
//! and passed over, as are binary and empty files, each counted; asked for by name, they are
//! errors. The order is that of the paths' bytes, so that it is the same on every machine.
//!
//! Links are followed, for a folder of a Hugging Face cache holds nothing else, and what they lead
//! to goes by their names. One to a folder that it lies in is passed over: all of that is listed
//! anyway. One that leads nowhere is an error: text that was asked for is gone.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::DataError;

/// The files of a run, in order.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// What was asked for: names the data in messages and logs.
    pub name: PathBuf,
    /// The candidates. Whether one is text shows when it is read.
    pub files: Vec<PathBuf>,
    /// True if unusable files are passed over rather than reported.
    pub lenient: bool,
    /// What was passed over while listing.
    pub skipped: Skipped,
}

/// How many files were passed over, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Name starts with a dot (a hidden folder counts once).
    pub hidden: u64,
    /// Not UTF-8, or with a NUL byte.
    pub binary: u64,
    /// Without a byte.
    pub empty: u64,
}

impl Skipped {
    /// How many files turned out to be no text when they were read.
    pub(super) fn unusable(&self) -> u64 {
        self.binary.saturating_add(self.empty)
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            hidden,
            binary,
            empty,
        } = self;
        write!(
            out,
            "passed over: {hidden} hidden, {binary} binary, {empty} empty"
        )
    }
}

impl Corpus {
    /// The text at `path`, a file or a folder.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], or [`DataError::NoText`] for a folder without
    /// files.
    pub fn at(path: &Path) -> Result<Self, DataError> {
        let metadata = fs::metadata(path).map_err(DataError::io(path, "read"))?;
        if metadata.is_dir() {
            return Self::in_folders(path.to_owned(), &[path.to_owned()], |_| true);
        }
        Ok(Self {
            name: path.to_owned(),
            files: vec![path.to_owned()],
            lenient: false,
            skipped: Skipped::default(),
        })
    }

    /// The text below several folders, in their order; `keep` chooses by path.
    ///
    /// # Errors
    /// [`DataError::Io`] if a folder cannot be listed or a link be followed, [`DataError::NoText`]
    /// if nothing is left.
    pub fn in_folders(
        name: PathBuf,
        folders: &[PathBuf],
        keep: impl Fn(&Path) -> bool,
    ) -> Result<Self, DataError> {
        let mut skipped = Skipped::default();
        let mut files = Vec::new();
        for folder in folders {
            let mut found = list(folder, &keep, &mut skipped)?;
            found.sort_by(|a, b| {
                a.as_os_str()
                    .as_encoded_bytes()
                    .cmp(b.as_os_str().as_encoded_bytes())
            });
            files.append(&mut found);
        }
        if files.is_empty() {
            return Err(DataError::NoText {
                path: name,
                skipped,
            });
        }
        Ok(Self {
            name,
            files,
            lenient: true,
            skipped,
        })
    }

    /// Reads one file as text: `None` if it is to be passed over, which `skipped` then counts.
    ///
    /// # Errors
    /// [`DataError::Io`]; for a file asked for by name also [`DataError::Empty`] and
    /// [`DataError::Binary`].
    pub fn read(&self, path: &Path, skipped: &mut Skipped) -> Result<Option<String>, DataError> {
        let bytes = fs::read(path).map_err(DataError::io(path, "read"))?;
        if bytes.is_empty() {
            if self.lenient {
                skipped.empty += 1;
                return Ok(None);
            }
            return Err(DataError::Empty {
                path: path.to_owned(),
            });
        }
        let nul = bytes.iter().position(|&byte| byte == 0);
        let problem = match (nul, String::from_utf8(bytes)) {
            (None, Ok(text)) => return Ok(Some(text)),
            (Some(offset), _) => ("a NUL byte", offset),
            (None, Err(error)) => ("invalid UTF-8", error.utf8_error().valid_up_to()),
        };
        if self.lenient {
            skipped.binary += 1;
            return Ok(None);
        }
        let (what, offset) = problem;
        Err(DataError::Binary {
            path: path.to_owned(),
            what,
            offset,
        })
    }
}

/// The files below a folder that are not hidden and that `keep` chooses.
fn list(
    folder: &Path,
    keep: &impl Fn(&Path) -> bool,
    skipped: &mut Skipped,
) -> Result<Vec<PathBuf>, DataError> {
    let mut found = Vec::new();
    let mut walk = WalkDir::new(folder).follow_links(true).into_iter();
    while let Some(entry) = walk.next() {
        match entry {
            Ok(entry) if entry.depth() > 0 && is_hidden(entry.path()) => {
                skipped.hidden += 1;
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                }
            }
            Ok(entry) if entry.file_type().is_file() && keep(entry.path()) => {
                found.push(entry.into_path());
            }
            Ok(_) => {}
            // Editors lock files by hidden links that lead nowhere.
            Err(error) if error.depth() > 0 && error.path().is_some_and(is_hidden) => {
                skipped.hidden += 1;
            }
            Err(error) => {
                let path = error.path().unwrap_or(folder).to_owned();
                // What is no error of the system's is a link in a circle.
                if let Some(source) = error.into_io_error() {
                    unlisted(path, source, keep)?;
                }
            }
        }
    }
    Ok(found)
}

/// Reports a path that could not be listed, unless it is a link to nothing that `keep` would not
/// choose.
fn unlisted(
    path: PathBuf,
    source: io::Error,
    keep: &impl Fn(&Path) -> bool,
) -> Result<(), DataError> {
    if !path.is_symlink() {
        return Err(DataError::io(path, "list")(source));
    }
    if source.kind() == io::ErrorKind::NotFound && !keep(&path) {
        return Ok(());
    }
    Err(DataError::io(path, "follow the link")(source))
}

/// True if a name starts with a dot.
fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_listed_in_byte_order_without_hidden_files() {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("b.txt", "b"),
            ("a/z.rs", "z"),
            (".git/config", "x"),
            (".hidden", "x"),
            ("c.bin", "\0"),
        ] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let corpus = Corpus::at(dir.path()).unwrap();
        let names: Vec<_> = corpus
            .files
            .iter()
            .map(|file| file.strip_prefix(dir.path()).unwrap())
            .collect();
        assert_eq!(
            names,
            [Path::new("a/z.rs"), Path::new("b.txt"), Path::new("c.bin")]
        );
        assert_eq!(corpus.skipped.hidden, 2);
        let mut skipped = corpus.skipped;
        assert_eq!(
            corpus
                .read(&dir.path().join("c.bin"), &mut skipped)
                .unwrap(),
            None
        );
        assert_eq!(skipped.binary, 1);
    }

    /// A folder of a Hugging Face cache is all links, and had "no text".
    #[cfg(unix)]
    #[test]
    fn links_are_followed_but_in_circles() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        for name in ["blobs/0a", "blobs/0b", "more/c.txt"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        let folder = dir.path().join("snapshots/1");
        fs::create_dir_all(folder.join("sub")).unwrap();
        for (target, name) in [
            ("../../blobs/0b", "b.txt"),
            ("../../../blobs/0a", "sub/a.txt"),
            ("../../more", "linked"),
            ("..", "sub/circle"),
            ("somebody@somewhere", ".#b.txt"),
        ] {
            symlink(target, folder.join(name)).unwrap();
        }
        let corpus = Corpus::at(&folder).unwrap();
        let mut skipped = corpus.skipped;
        let texts: Vec<_> = corpus
            .files
            .iter()
            .map(|file| corpus.read(file, &mut skipped).unwrap().unwrap())
            .collect();
        let expected = ["b.txt", "linked/c.txt", "sub/a.txt"].map(|name| folder.join(name));
        assert_eq!(corpus.files, expected);
        assert_eq!(texts, ["blobs/0b", "more/c.txt", "blobs/0a"]);
        assert_eq!(skipped.hidden, 1);

        symlink("../../blobs/0c", folder.join("gone.txt")).unwrap();
        let error = Corpus::at(&folder).unwrap_err().to_string();
        let gone = folder.join("gone.txt");
        let expected = format!("{}: cannot follow the link: ", gone.display());
        assert!(error.starts_with(&expected), "{error}");
        let others = |path: &Path| path != gone;
        let folders = std::slice::from_ref(&folder);
        let corpus = Corpus::in_folders(folder.clone(), folders, others).unwrap();
        assert_eq!(corpus.files.len(), 3);
    }
}
