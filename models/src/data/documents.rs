//! Documents, one after another, from text, jsonl and parquet files, plain or compressed.
//!
//! Plain text files are mapped, not read, however large they are; everything else is read as it
//! comes, a document at a time. An empty document is passed over and counted, as are files of a
//! folder that are not text.

mod input;
mod json_lines;
#[cfg(feature = "parquet")]
mod parquet;
mod plain;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::DataError;
use super::source::Skipped;

pub use input::{Format, Input, Inputs};
pub use plain::TextDocuments;

/// Which documents files hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What one document of a text file is.
    pub text: TextDocuments,
    /// Field of a jsonl object, or column of a parquet file, that holds the text.
    pub field: String,
}

/// Text in memory, UTF-8 all through, shared by the documents and pieces that lie in it.
#[derive(Debug)]
pub(super) struct Text {
    bytes: Bytes,
    path: Arc<Path>,
}

#[derive(Debug)]
enum Bytes {
    Read(Vec<u8>),
    Mapped(Mmap),
}

impl Text {
    /// Text that was read from the file `path`.
    pub(super) fn read(text: String, path: &Arc<Path>) -> Self {
        Self {
            bytes: Bytes::Read(text.into_bytes()),
            path: path.clone(),
        }
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All of it.
    fn all(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Read(bytes) => bytes,
            Bytes::Mapped(map) => map,
        }
    }

    /// Number of bytes.
    pub(super) fn len(&self) -> usize {
        self.all().len()
    }

    /// The bytes in a range, which lies inside.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.all()[range]
    }

    /// The text in a range, which begins and ends with characters.
    ///
    /// # Errors
    /// [`DataError::Binary`] if a mapped file was changed since it was checked.
    pub(super) fn str(&self, range: Range<usize>) -> Result<&str, DataError> {
        let start = range.start;
        str::from_utf8(self.bytes(range)).map_err(|error| DataError::Binary {
            path: self.path.to_path_buf(),
            what: "invalid UTF-8",
            offset: start + error.valid_up_to(),
        })
    }

    /// Whether a character begins, or the text ends, at a place.
    pub(super) fn is_boundary(&self, at: usize) -> bool {
        self.all().get(at).is_none_or(|byte| byte & 0xc0 != 0x80)
    }
}

/// One document.
#[derive(Clone, Debug)]
pub(super) struct Document {
    /// Where it lies.
    pub(super) text: Arc<Text>,
    /// Which part of it.
    pub(super) range: Range<usize>,
    /// Bytes of the input files that were gone through since the document before.
    pub(super) read: u64,
}

/// What reading a file gives.
type Documents = Box<dyn Iterator<Item = Result<Document, DataError>>>;

/// All documents of the inputs, in order.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    inputs: &'a Inputs,
    layout: &'a Layout,
    next: usize,
    open: OpenFile,
    /// What was passed over.
    pub(super) skipped: Skipped,
    /// Bytes of files that were passed over, not yet told.
    unread: u64,
}

/// The file in hand.
#[derive(Default)]
struct OpenFile(Option<Documents>);

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(if self.0.is_some() { "open" } else { "closed" })
    }
}

impl<'a> Reader<'a> {
    /// Reads the inputs from the start.
    pub(super) fn new(inputs: &'a Inputs, layout: &'a Layout) -> Self {
        Self {
            inputs,
            layout,
            next: 0,
            open: OpenFile::default(),
            skipped: inputs.skipped,
            unread: 0,
        }
    }

    /// Opens the next file; false if there is none.
    fn open_next(&mut self) -> Result<bool, DataError> {
        let Some(input) = self.inputs.files.get(self.next) else {
            return Ok(false);
        };
        self.next += 1;
        let opened = match input.format {
            Format::Text => plain::documents(input, self.layout.text.clone()),
            Format::JsonLines => json_lines::documents(input, &self.layout.field),
            #[cfg(feature = "parquet")]
            Format::Parquet => parquet::documents(input, &self.layout.field),
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => Err(DataError::Columns {
                path: input.path.clone(),
                reason: "this build lacks the feature `parquet`".to_owned(),
            }),
        };
        match opened {
            Ok(documents) => self.open.0 = Some(documents),
            Err(DataError::Empty { .. }) if input.listed => self.skipped.empty += 1,
            Err(DataError::Binary { .. }) if input.listed => {
                self.skipped.binary += 1;
                self.unread += input.size;
            }
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.open.0.as_mut().and_then(Iterator::next) {
                Some(Ok(mut document)) => {
                    document.read += std::mem::take(&mut self.unread);
                    if document.range.is_empty() {
                        self.unread = document.read;
                        self.skipped.empty += 1;
                        continue;
                    }
                    return Some(Ok(document));
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    self.open.0 = None;
                    match self.open_next() {
                        Ok(true) => {}
                        Ok(false) => return None,
                        Err(error) => return Some(Err(error)),
                    }
                }
            }
        }
    }
}

/// A file as a stream, unpacked if its name says that it is packed, and how much of the file has
/// gone by.
fn stream(input: &Input) -> Result<(Box<dyn Read>, Counted), DataError> {
    let file = File::open(&input.path).map_err(DataError::io(&input.path, "read"))?;
    let counted = Counted::default();
    let file = BufReader::with_capacity(1 << 20, CountingReader(file, counted.clone()));
    Ok((
        input
            .packing
            .unpack(file)
            .map_err(DataError::io(&input.path, "read"))?,
        counted,
    ))
}

/// Bytes that have gone by.
#[derive(Clone, Debug, Default)]
struct Counted(Arc<std::sync::atomic::AtomicU64>);

impl Counted {
    /// Bytes since the last call.
    fn take(&self) -> u64 {
        self.0.swap(0, std::sync::atomic::Ordering::Relaxed)
    }
}

/// Counts what is read through it.
struct CountingReader(File, Counted);

impl Read for CountingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1
            .0
            .fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
        Ok(count)
    }
}

/// Opens a text file whole: mapped if it is a plain file.
fn whole(input: &Input) -> Result<Text, DataError> {
    let path: PathBuf = input.path.clone();
    let bytes = if input.packing.is_none() && fs::metadata(&path).is_ok_and(|file| file.is_file()) {
        let file = File::open(&path).map_err(DataError::io(&path, "read"))?;
        // SAFETY: the map is read-only and private to this process. Whoever changes a text while
        // it is tokenised gets other ids, or a bus error if it is cut: bytes are checked to be
        // UTF-8 again wherever that is needed, so safe code relies on nothing that may change.
        Bytes::Mapped(unsafe { Mmap::map(&file) }.map_err(DataError::io(&path, "map"))?)
    } else {
        let mut bytes = Vec::new();
        let (mut stream, _) = stream(input)?;
        stream
            .read_to_end(&mut bytes)
            .map_err(DataError::io(&path, "read"))?;
        Bytes::Read(bytes)
    };
    let text = Text {
        bytes,
        path: path.into(),
    };
    check(text.all(), text.path())?;
    Ok(text)
}

/// Checks that bytes are text.
fn check(bytes: &[u8], path: &Path) -> Result<(), DataError> {
    let binary = |what, offset| DataError::Binary {
        path: path.to_owned(),
        what,
        offset,
    };
    if bytes.is_empty() {
        return Err(DataError::Empty {
            path: path.to_owned(),
        });
    }
    if let Some(at) = memchr::memchr(0, bytes) {
        return Err(binary("a NUL byte", at));
    }
    match str::from_utf8(bytes) {
        Ok(_) => Ok(()),
        Err(error) => Err(binary("invalid UTF-8", error.valid_up_to())),
    }
}

#[cfg(test)]
mod tests;
