//! Writes shards as ids come: each appears whole, under its name, when it is full.
//!
//! A shard closes at the end of the first document that reaches the size asked for, so a document
//! lies in one shard and a later run can go on behind any shard. Nothing but the ends of the
//! documents of one shard is held in memory.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::data::{DataError, fingerprint::Fingerprint};
use crate::durable::Unfinished;

use super::header::{SIZE, ShardHeader};

/// Bytes of ids that are collected before they are written.
const BUFFER: usize = 1 << 20;

/// Writes the shards of a folder one after another.
#[derive(Debug)]
pub(crate) struct ShardWriter {
    folder: PathBuf,
    /// Ids after which a shard closes.
    full: u64,
    /// The header of the shard in hand.
    header: ShardHeader,
    open: Option<Open>,
}

/// A shard that is being written.
#[derive(Debug)]
struct Open {
    file: Unfinished,
    sum: Fingerprint,
    buffer: Vec<u8>,
    ends: Vec<u64>,
}

impl ShardWriter {
    /// Writes into `folder` from the shard on that `header` begins: `index` and `first_document`
    /// say how much is there already, and the counts are 0.
    pub(crate) fn new(folder: &Path, header: ShardHeader, full: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            full,
            header,
            open: None,
        }
    }

    /// Appends ids to the document in hand.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::Encode`] for an id outside the vocabulary.
    pub(crate) fn push(&mut self, ids: &[u32]) -> Result<(), DataError> {
        if ids.is_empty() {
            return Ok(());
        }
        let vocab = self.header.vocab;
        if let Some(id) = ids.iter().find(|&&id| u64::from(id) >= vocab) {
            return Err(DataError::Encode {
                path: self.path(),
                reason: format!("id {id} in a vocabulary of {vocab}"),
            });
        }
        self.header.tokens += ids.len() as u64;
        let (path, width) = (self.path(), self.header.width);
        let open = self.opened()?;
        for part in ids.chunks(BUFFER / 4) {
            if width == 2 {
                // Every id is below the vocabulary, which fits 16 bits at this width.
                let narrow = |id: u32| u16::try_from(id).unwrap_or_default().to_le_bytes();
                open.buffer.extend(part.iter().flat_map(|&id| narrow(id)));
            } else {
                open.buffer
                    .extend(part.iter().flat_map(|id| id.to_le_bytes()));
            }
            if open.buffer.len() >= BUFFER {
                open.flush().map_err(DataError::io(path.clone(), "write"))?;
            }
        }
        Ok(())
    }

    /// Ends the document in hand, which stands for `bytes` bytes of text. Returns the header of the
    /// shard if that filled it.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub(crate) fn end_document(&mut self, bytes: u64) -> Result<Option<ShardHeader>, DataError> {
        self.header.bytes += bytes;
        self.header.documents += 1;
        let end = self.header.tokens;
        self.opened()?.ends.push(end);
        if self.header.tokens >= self.full {
            self.close()
        } else {
            Ok(None)
        }
    }

    /// Closes the shard in hand, if there is one, and returns its header.
    ///
    /// # Errors
    /// [`DataError::Io`].
    pub(crate) fn close(&mut self) -> Result<Option<ShardHeader>, DataError> {
        let Some(open) = self.open.take() else {
            return Ok(None);
        };
        let path = self.path();
        let written = self.header;
        let header = open.finish(written).map_err(DataError::io(path, "write"))?;
        self.header = ShardHeader {
            index: header.index + 1,
            first_document: header.first_document + header.documents,
            tokens: 0,
            documents: 0,
            bytes: 0,
            ..header
        };
        Ok(Some(header))
    }

    /// The shard in hand, begun if there is none.
    fn opened(&mut self) -> Result<&mut Open, DataError> {
        let path = self.path();
        match &mut self.open {
            Some(open) => Ok(open),
            closed @ None => {
                let open = Open::create(&path).map_err(DataError::io(path, "write"))?;
                Ok(closed.insert(open))
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(super::file_name(self.header.index))
    }
}

impl Open {
    fn create(path: &Path) -> io::Result<Self> {
        let mut file = Unfinished::create(path)?;
        // Room for the header, which is known last.
        file.file().write_all(&[0; SIZE])?;
        Ok(Self {
            file,
            sum: Fingerprint::default(),
            buffer: Vec::with_capacity(2 * BUFFER),
            ends: Vec::new(),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sum.update(&self.buffer);
        self.file.file().write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Writes what stands behind the ids, then the header, and gives the file its name.
    fn finish(mut self, mut header: ShardHeader) -> io::Result<ShardHeader> {
        self.flush()?;
        let ids = SIZE as u64 + header.tokens * header.width;
        let padding = ids.next_multiple_of(8) - ids;
        self.buffer.extend((0..padding).map(|_| 0));
        for part in std::mem::take(&mut self.ends).chunks(BUFFER / 8) {
            self.buffer
                .extend(part.iter().flat_map(|end| end.to_le_bytes()));
            self.flush()?;
        }
        self.flush()?;
        header.payload = self.sum.finish();
        let file = self.file.file();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&header.to_bytes())?;
        self.file.finish()?;
        Ok(header)
    }
}
