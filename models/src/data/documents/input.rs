//! Which files are read: paths, folders and patterns become a list, in an order that is the same on
//! every machine.

use std::fs;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use globset::GlobBuilder;

use crate::data::DataError;
use crate::data::source::{Corpus, Skipped};

/// How a file holds text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain text.
    Text,
    /// A JSON object a line: `.jsonl`, `.ndjson`, packed also `.json`.
    JsonLines,
    /// Columns: `.parquet`.
    Parquet,
}

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::data) enum Packing {
    /// Not at all.
    None,
    /// `.gz`.
    Gzip,
    /// `.zst`.
    Zstd,
}

impl Packing {
    /// True if a file is not packed.
    pub(super) fn is_none(self) -> bool {
        self == Self::None
    }

    /// The contents of a packed file.
    pub(super) fn unpack(self, file: impl BufRead + 'static) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::None => Box::new(file),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            Self::Zstd => Box::new(zstd::Decoder::with_buffer(file)?),
        })
    }
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Where it lies.
    pub path: PathBuf,
    /// How it holds text.
    pub format: Format,
    /// How it is packed.
    pub(super) packing: Packing,
    /// Size in bytes.
    pub size: u64,
    /// True if it was found in a folder or by a pattern rather than named: what is no text is then
    /// passed over.
    pub listed: bool,
}

/// The files of a run, in order.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The files.
    pub files: Vec<Input>,
    /// What was passed over while listing.
    pub skipped: Skipped,
}

impl Inputs {
    /// The files that paths, folders and patterns name, in the order given; those of a folder or a
    /// pattern by name.
    ///
    /// # Errors
    /// [`DataError::Missing`] for what names nothing, [`DataError::Io`], [`DataError::NoText`] for
    /// a folder without files.
    pub fn find(names: &[PathBuf]) -> Result<Self, DataError> {
        let mut inputs = Self::default();
        for name in names {
            if name.exists() {
                let corpus = Corpus::at(name)?;
                inputs.add(corpus)?;
            } else {
                inputs.add(matching(name)?)?;
            }
        }
        Ok(inputs)
    }

    /// Size of all files.
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .fold(0, |sum, file| sum.saturating_add(file.size))
    }

    fn add(&mut self, corpus: Corpus) -> Result<(), DataError> {
        let Skipped {
            hidden,
            binary,
            empty,
        } = corpus.skipped;
        self.skipped.hidden += hidden;
        self.skipped.binary += binary;
        self.skipped.empty += empty;
        for path in corpus.files {
            let size = fs::metadata(&path)
                .map_err(DataError::io(&path, "read"))?
                .len();
            let (format, packing) = kind(&path);
            self.files.push(Input {
                path,
                format,
                packing,
                size,
                listed: corpus.lenient,
            });
        }
        Ok(())
    }
}

/// What a file's name says of it.
fn kind(path: &Path) -> (Format, Packing) {
    let ending = |path: &Path| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        ending.unwrap_or_default().to_ascii_lowercase()
    };
    let packing = match &*ending(path) {
        "gz" => Packing::Gzip,
        "zst" => Packing::Zstd,
        _ => Packing::None,
    };
    let name = match packing {
        Packing::None => path.to_owned(),
        Packing::Gzip | Packing::Zstd => path.with_extension(""),
    };
    let format = match &*ending(&name) {
        "jsonl" | "ndjson" => Format::JsonLines,
        // Corpora are packed under this name; a plain file of this name is one value, not lines.
        "json" if !packing.is_none() => Format::JsonLines,
        "parquet" if packing.is_none() => Format::Parquet,
        _ => Format::Text,
    };
    (format, packing)
}

/// The files that a pattern names; `**` matches folders.
fn matching(pattern: &Path) -> Result<Corpus, DataError> {
    let missing = || DataError::Missing {
        path: pattern.to_owned(),
    };
    let text = pattern.to_str().ok_or_else(missing)?;
    if !text.contains(['*', '?', '[', '{']) {
        return Err(missing());
    }
    let glob = GlobBuilder::new(text).literal_separator(true).build();
    let glob = glob.map_err(|_| missing())?.compile_matcher();
    // The folder before the first part that is a pattern.
    let is_plain = |part: &std::path::Component<'_>| {
        let part = part.as_os_str().to_string_lossy();
        !part.contains(['*', '?', '[', '{'])
    };
    let folder: PathBuf = pattern.components().take_while(is_plain).collect();
    let given = if folder.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        folder.clone()
    };
    if !given.is_dir() {
        return Err(missing());
    }
    let matches = |path: &Path| {
        let path = if folder.as_os_str().is_empty() {
            path.strip_prefix(".").unwrap_or(path)
        } else {
            path
        };
        glob.is_match(path)
    };
    Corpus::in_folders(pattern.to_owned(), &[given], matches)
}
