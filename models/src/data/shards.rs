//! Tokens of any number: a folder of memory-mapped shards, and a manifest that says that all are
//! there.
//!
//! `00000.tokens`, `00001.tokens`, .. hold the ids one document after another, each document with
//! the separator behind it, and where each document ends ([`header`]). `tokens.json` comes last: a
//! folder without it is not finished. The ids of all shards count through, so a window of a
//! training run may begin in one and end in the next.
//!
//! Opening reads headers alone, however large the shards are; [`Shards::verify`] reads everything.
//! Ids are compared with the vocabulary as they are read.

pub mod header;
mod writer;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::{DataError, fingerprint::Fingerprint};
use crate::durable;

pub use header::ShardHeader;
pub(crate) use header::width_of;
pub(crate) use writer::ShardWriter;

/// The file that makes a folder of shards complete.
pub const MANIFEST: &str = "tokens.json";
/// Largest manifest that is read.
const MAX_MANIFEST: u64 = 1 << 16;
/// What the manifest calls the folder.
const FORMAT: &str = "nvfp4-tokens";

/// What a complete folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always `nvfp4-tokens`.
    format: String,
    /// Version of the layout.
    version: u64,
    /// What the tokenizer was called.
    pub tokenizer: String,
    /// Number of shards.
    pub shards: u64,
    /// Ids in all of them, separators included.
    pub tokens: u64,
    /// Documents in all of them.
    pub documents: u64,
    /// Bytes of text that the ids stand for.
    pub bytes: u64,
}

impl Manifest {
    /// The sum of some shards.
    pub(crate) fn of<'a>(
        tokenizer: String,
        headers: impl IntoIterator<Item = &'a ShardHeader>,
    ) -> Self {
        let mut manifest = Self {
            format: FORMAT.to_owned(),
            version: header::VERSION,
            tokenizer,
            shards: 0,
            tokens: 0,
            documents: 0,
            bytes: 0,
        };
        for header in headers {
            manifest.shards += 1;
            manifest.tokens = manifest.tokens.saturating_add(header.tokens);
            manifest.documents = manifest.documents.saturating_add(header.documents);
            manifest.bytes = manifest.bytes.saturating_add(header.bytes);
        }
        manifest
    }

    /// Writes the manifest of a folder, which is complete from then on.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), DataError> {
        let path = folder.join(MANIFEST);
        durable::write_file::<io::Error>(&path, |out| {
            serde_json::to_writer_pretty(&mut *out, self).map_err(io::Error::other)?;
            out.write_all(b"\n")
        })
        .map_err(DataError::io(path, "write"))
    }

    /// Reads the manifest of a folder; `None` if there is none.
    ///
    /// # Errors
    /// [`DataError::Io`], or [`DataError::Shard`] if it is none of ours.
    pub fn read(folder: &Path) -> Result<Option<Self>, DataError> {
        let path = folder.join(MANIFEST);
        let size = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(DataError::io(path, "read")(error)),
        };
        let broken = |reason: String| DataError::Shard {
            path: path.clone(),
            reason,
        };
        if size > MAX_MANIFEST {
            return Err(broken(format!("{size} bytes are too many for a manifest")));
        }
        let text = fs::read(&path).map_err(DataError::io(&path, "read"))?;
        let manifest: Self = serde_json::from_slice(&text).map_err(|e| broken(e.to_string()))?;
        if manifest.format != FORMAT || manifest.version != header::VERSION {
            return Err(broken(format!(
                "{} of version {}, {FORMAT} of version {} is understood",
                manifest.format,
                manifest.version,
                header::VERSION
            )));
        }
        Ok(Some(manifest))
    }
}

/// Name of the shard with this index.
pub(crate) fn file_name(index: u64) -> String {
    format!("{index:05}.tokens")
}

/// One open shard.
#[derive(Debug)]
pub struct Shard {
    header: ShardHeader,
    map: Mmap,
    path: PathBuf,
}

impl Shard {
    /// Opens a shard: its header is checked, and the size of the file against it.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], or [`DataError::Shard`] with what does not hold.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path, "read"))?;
        // SAFETY: the map is read-only and private to this process. Shards are written under
        // another name and renamed (`durable`), so none is changed while it is open; a user who
        // truncates one all the same gets a bus error, not undefined values in safe code.
        let map = unsafe { Mmap::map(&file) }.map_err(DataError::io(path, "map"))?;
        let broken = |reason| DataError::Shard {
            path: path.to_owned(),
            reason,
        };
        let header = ShardHeader::from_bytes(&map).map_err(broken)?;
        if header.file_size() != Some(map.len() as u64) {
            let expected = header.file_size().unwrap_or(u64::MAX);
            let size = map.len();
            return Err(broken(format!("{size} bytes long instead of {expected}")));
        }
        let path = path.to_owned();
        Ok(Self { header, map, path })
    }

    /// What the shard says of itself.
    pub fn header(&self) -> &ShardHeader {
        &self.header
    }

    /// Copies the ids from index `start` on.
    ///
    /// # Errors
    /// [`DataError::Shard`] for an id outside the vocabulary, or a range outside the shard.
    pub fn read(&self, start: u64, ids: &mut [i32]) -> Result<(), DataError> {
        let width = self.header.width;
        let length = ids.len() as u64;
        let inside = start
            .checked_add(length)
            .is_some_and(|end| end <= self.header.tokens);
        let bytes = inside.then(|| {
            // The file has this size: `open` compared it with the header.
            let first = usize::try_from(start * width).ok()? + header::SIZE;
            let size = usize::try_from(length * width).ok()?;
            self.map.get(first..first + size)
        });
        let Some(bytes) = bytes.flatten() else {
            return Err(self.broken(format!("ids {start}..+{length} are outside of it")));
        };
        let vocab = i32::try_from(self.header.vocab).unwrap_or(i32::MAX);
        if width == 2 {
            let (words, _) = bytes.as_chunks::<2>();
            for (id, word) in ids.iter_mut().zip(words) {
                *id = i32::from(u16::from_le_bytes(*word));
            }
        } else {
            let (words, _) = bytes.as_chunks::<4>();
            for (id, word) in ids.iter_mut().zip(words) {
                *id = i32::from_le_bytes(*word);
            }
        }
        match ids.iter().position(|id| !(0..vocab).contains(id)) {
            None => Ok(()),
            Some(at) => Err(self.broken(format!(
                "id {} at {} in a vocabulary of {vocab}",
                ids[at].cast_unsigned(),
                start + at as u64
            ))),
        }
    }

    /// Where a document ends, counted in ids from the start of the shard.
    fn end(&self, document: u64) -> u64 {
        let at = self.header.ends_at().and_then(|ends| {
            let at = ends.checked_add(document.checked_mul(8)?)?;
            usize::try_from(at).ok()
        });
        let word = at.and_then(|at| self.map.get(at..)?.first_chunk::<8>());
        // An index that is out of order cannot lead out of the shard.
        word.map_or(0, |word| u64::from_le_bytes(*word))
            .min(self.header.tokens)
    }

    /// The first start of a document at or behind `token`; the end of the shard if there is none.
    fn document_start(&self, token: u64) -> u64 {
        if token == 0 {
            return 0;
        }
        let (mut low, mut high) = (0, self.header.documents);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.end(middle) < token {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low < self.header.documents {
            self.end(low)
        } else {
            self.header.tokens
        }
    }

    /// Reads everything and checks it.
    ///
    /// # Errors
    /// [`DataError::Shard`] with what does not hold.
    pub fn verify(&self) -> Result<(), DataError> {
        if Fingerprint::of(&self.map[header::SIZE..]) != self.header.payload {
            return Err(self.broken("the checksum does not hold".to_owned()));
        }
        let mut ids = vec![0; 1 << 16];
        let mut start = 0;
        while start < self.header.tokens {
            let length = (self.header.tokens - start).min(ids.len() as u64);
            let part = usize::try_from(length).unwrap_or(ids.len());
            self.read(start, &mut ids[..part])?;
            start += length;
        }
        let mut last = 0;
        for document in 0..self.header.documents {
            let end = self.end(document);
            if end < last {
                return Err(self.broken(format!("document {document} ends at {end}")));
            }
            last = end;
        }
        if last != self.header.tokens {
            let tokens = self.header.tokens;
            return Err(self.broken(format!("the last document ends at {last} of {tokens}")));
        }
        Ok(())
    }

    fn broken(&self, reason: String) -> DataError {
        DataError::Shard {
            path: self.path.clone(),
            reason,
        }
    }
}

/// An open folder of shards.
#[derive(Debug)]
pub struct Shards {
    folder: PathBuf,
    manifest: Manifest,
    shards: Vec<Shard>,
    /// First id of each shard, counted through.
    starts: Vec<u64>,
}

impl Shards {
    /// Opens a complete folder: every header is checked, and that the shards belong together.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], [`DataError::Incomplete`] without a manifest, or
    /// [`DataError::Shard`] with what does not hold.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        fs::metadata(folder).map_err(DataError::io(folder, "read"))?;
        let Some(manifest) = Manifest::read(folder)? else {
            return Err(DataError::Incomplete {
                path: folder.to_owned(),
            });
        };
        let (mut shards, mut starts, mut tokens) = (Vec::<Shard>::new(), Vec::new(), 0);
        for index in 0..manifest.shards {
            let shard = Shard::open(&folder.join(file_name(index)))?;
            let first = shards.first().map_or(shard.header, |first| first.header);
            follows(
                &first,
                shards.last().map(|last| &last.header),
                &shard.header,
            )
            .map_err(|reason| shard.broken(reason))?;
            starts.push(tokens);
            // A sum of sizes of files.
            tokens += shard.header.tokens;
            shards.push(shard);
        }
        let found = Manifest::of(
            manifest.tokenizer.clone(),
            shards.iter().map(|shard| &shard.header),
        );
        if found != manifest || shards.is_empty() {
            return Err(DataError::Shard {
                path: folder.join(MANIFEST),
                reason: format!(
                    "{} shards, {} documents and {} ids instead of {}, {} and {}",
                    found.shards,
                    found.documents,
                    found.tokens,
                    manifest.shards,
                    manifest.documents,
                    manifest.tokens
                ),
            });
        }
        Ok(Self {
            folder: folder.to_owned(),
            manifest,
            shards,
            starts,
        })
    }

    /// The shards that an unfinished run with these parameters left, checked in full. `None` if
    /// what lies there is from another one.
    pub(crate) fn whole_ones(
        folder: &Path,
        like: &ShardHeader,
    ) -> Result<Option<Vec<ShardHeader>>, DataError> {
        let mut headers: Vec<ShardHeader> = Vec::new();
        while let path = folder.join(file_name(headers.len() as u64))
            && path.exists()
        {
            let shard = Shard::open(&path)?;
            if follows(like, headers.last(), &shard.header).is_err() {
                return Ok(None);
            }
            shard.verify()?;
            headers.push(shard.header);
        }
        Ok(Some(headers))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the folder holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The header of the first shard: vocabulary, tokenizer, separator are those of all.
    pub fn header(&self) -> &ShardHeader {
        // `open` refuses a folder without shards.
        &self.shards[0].header
    }

    /// Number of ids.
    pub fn tokens(&self) -> u64 {
        self.manifest.tokens
    }

    /// Equal for equal ids, cut into equal shards.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Fingerprint::default();
        for Shard { header, .. } in &self.shards {
            for word in [header.tokenizer, header.tokens, header.payload] {
                hash.update(&word.to_le_bytes());
            }
        }
        hash.finish()
    }

    /// Copies the ids from index `start` on, across shards.
    ///
    /// # Errors
    /// [`DataError::Shard`] for an id outside the vocabulary, or a range outside the shards.
    pub fn read(&self, start: u64, ids: &mut [i32]) -> Result<(), DataError> {
        let (mut start, mut rest) = (start, ids);
        while !rest.is_empty() {
            let index = self.starts.partition_point(|&first| first <= start);
            let index = index.saturating_sub(1);
            let (shard, inside) = (&self.shards[index], start - self.starts[index]);
            let left = shard.header.tokens.saturating_sub(inside);
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            // Behind the last shard nothing is left, and reading says so.
            let length = if length == 0 { rest.len() } else { length };
            let (now, later) = rest.split_at_mut(length);
            shard.read(inside, now)?;
            (start, rest) = (start + length as u64, later);
        }
        Ok(())
    }

    /// The first start of a document at or behind `token`.
    pub fn document_start(&self, token: u64) -> u64 {
        let index = self.starts.partition_point(|&first| first <= token);
        let index = index.saturating_sub(1);
        let start = self.starts[index];
        start + self.shards[index].document_start(token - start)
    }

    /// Reads all shards and checks them; `seen` hears the bytes of each.
    ///
    /// # Errors
    /// [`DataError::Shard`] with the first thing that does not hold.
    pub fn verify(&self, seen: impl Fn(u64)) -> Result<(), DataError> {
        for shard in &self.shards {
            shard.verify()?;
            seen(shard.map.len() as u64);
        }
        Ok(())
    }
}

/// Checks that a shard comes behind another one, or is the first, of the same tokens.
fn follows(
    like: &ShardHeader,
    before: Option<&ShardHeader>,
    shard: &ShardHeader,
) -> Result<(), String> {
    let index = before.map_or(0, |before| before.index.saturating_add(1));
    let first_document = before.map_or(0, |before| {
        before.first_document.saturating_add(before.documents)
    });
    let same = ShardHeader {
        tokens: shard.tokens,
        documents: shard.documents,
        bytes: shard.bytes,
        payload: shard.payload,
        index,
        first_document,
        ..*like
    };
    if shard.index != index || shard.first_document != first_document {
        return Err(format!(
            "it is shard {} from document {} on, not {index} from {first_document}",
            shard.index, shard.first_document
        ));
    }
    if same == *shard {
        Ok(())
    } else {
        Err("it was made from other inputs or by another tokenizer than the first".to_owned())
    }
}

#[cfg(test)]
mod tests;
