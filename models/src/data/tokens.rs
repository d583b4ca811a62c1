//! A corpus tokenised once: one memory-mapped file of ids, training part first.
//!
//! Layout, little-endian: a header of 120 bytes, the byte counts of the training text
//! ([`ByteCounts`]), then the ids as u16 (vocabularies up to 65536) or u32.
//!
//! # Split
//! With [`HOLD_OUT_EVERY`] text files or more, every [`HOLD_OUT_EVERY`]th whole one is validation
//! text. With fewer, it is the last 5 % of each, from the line start before them on if there is one
//! in the 5 % before. Files that are passed over do not count.
//!
//! The header holds a fingerprint of sources, tokenizer and split, and one of everything behind it:
//! a file is used again if both hold, and made anew otherwise.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::durable;

use super::{ByteCounts, Corpus, DataError, Tokenizer, fingerprint::Fingerprint, source::Skipped};

/// One file in this many is held out for validation.
pub const HOLD_OUT_EVERY: usize = 20;

const MAGIC: [u8; 8] = *b"NVFP4TOK";
const VERSION: u64 = 1;
/// Ends the fingerprint of what was split otherwise at first: files that are passed over counted
/// then, and the last 5 % began at the line start before them however far away. What both ways
/// split alike keeps its fingerprint, and so its token files.
const SPLIT: u64 = 2;
const FIELDS: usize = 13;
/// Size of the header: magic, [`FIELDS`] words, and their fingerprint.
const HEADER: usize = 8 + 8 * FIELDS + 8;

/// The two parts of a corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// What is trained on.
    Training,
    /// What is held out.
    Validation,
}

impl fmt::Display for Split {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Training => "training",
            Self::Validation => "validation",
        })
    }
}

/// An open token file.
#[derive(Debug)]
pub struct TokenFile {
    header: Header,
    counts: ByteCounts,
    map: Mmap,
    corpus: PathBuf,
}

/// What stands in the header, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Header {
    version: u64,
    /// Bytes per id, 2 or 4.
    width: u64,
    vocab: u64,
    /// Sources, tokenizer, split.
    source: u64,
    /// Everything behind the header.
    payload: u64,
    tokens: [u64; 2],
    bytes: [u64; 2],
    files: u64,
    skipped: [u64; 3],
}

impl Header {
    fn words(&self) -> [u64; FIELDS] {
        let Self {
            version,
            width,
            vocab,
            source,
            payload,
            tokens,
            bytes,
            files,
            skipped,
        } = *self;
        let [a, b, c] = skipped;
        [
            version, width, vocab, source, payload, tokens[0], tokens[1], bytes[0], bytes[1],
            files, a, b, c,
        ]
    }

    fn to_bytes(self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.words().iter().flat_map(|word| word.to_le_bytes()));
        out.extend(Fingerprint::of(&out).to_le_bytes());
        out
    }

    /// Reads and checks a header; the reason if it is none of ours.
    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let Some(bytes) = bytes.get(..HEADER) else {
            return Err(format!("{} bytes are too few for a header", bytes.len()));
        };
        let (body, sum) = bytes.split_at(HEADER - 8);
        if !body.starts_with(&MAGIC) {
            return Err("it does not begin like one".to_owned());
        }
        if Fingerprint::of(body).to_le_bytes() != sum {
            return Err("the header's checksum does not hold".to_owned());
        }
        let (words, _) = body[MAGIC.len()..].as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        let header = Self {
            version: next(),
            width: next(),
            vocab: next(),
            source: next(),
            payload: next(),
            tokens: [next(), next()],
            bytes: [next(), next()],
            files: next(),
            skipped: [next(), next(), next()],
        };
        if header.version != VERSION {
            return Err(format!(
                "version {}, {VERSION} is understood",
                header.version
            ));
        }
        if header.width != 2 && header.width != 4 {
            return Err(format!(
                "{} bytes per id, 2 or 4 are possible",
                header.width
            ));
        }
        Ok(header)
    }

    fn total_tokens(&self) -> Option<u64> {
        self.tokens[0].checked_add(self.tokens[1])
    }

    fn file_size(&self) -> Option<u64> {
        let ids = self.total_tokens()?.checked_mul(self.width)?;
        ids.checked_add((HEADER + ByteCounts::ENCODED) as u64)
    }
}

impl TokenFile {
    /// Opens the token file of `corpus` in `folder`, made anew unless an intact one is there.
    ///
    /// # Errors
    /// Any [`DataError`] about the sources, the tokenizer, or the folder.
    pub fn prepare(
        corpus: &Corpus,
        tokenizer: &Tokenizer,
        folder: &Path,
    ) -> Result<Self, DataError> {
        let (source, texts) = fingerprint(corpus, tokenizer)?;
        if texts.files.is_empty() {
            return Err(DataError::NoText {
                path: corpus.name.clone(),
                skipped: texts.skipped,
            });
        }
        let path = folder.join(format!("{source:016x}.tokens"));
        if path.exists()
            && let Ok(open) = Self::open(&path, corpus.name.clone())
            && open.header.source == source
            && open.has_split_of(&texts)
        {
            return Ok(open);
        }
        fs::create_dir_all(folder).map_err(DataError::io(folder, "create"))?;
        write(&path, corpus, tokenizer, source, &texts)?;
        Self::open(&path, corpus.name.clone())
    }

    /// Opens a token file and checks all of it; `corpus` names it in later messages.
    ///
    /// # Errors
    /// [`DataError::Missing`], [`DataError::Io`], or [`DataError::Damaged`] with what does not
    /// hold.
    pub fn open(path: &Path, corpus: PathBuf) -> Result<Self, DataError> {
        let damaged = |reason: String| DataError::Damaged {
            path: path.to_owned(),
            reason,
        };
        let file = File::open(path).map_err(DataError::io(path, "read"))?;
        // SAFETY: the map is read-only and private to this process. Token files are written once
        // under another name and renamed (`durable`), so none is changed while it is open; a user
        // who truncates one all the same gets a bus error, not undefined values in safe code.
        let map = unsafe { Mmap::map(&file) }.map_err(DataError::io(path, "map"))?;
        let header = Header::from_bytes(&map).map_err(damaged)?;
        if header.file_size() != Some(map.len() as u64) {
            let expected = header.file_size().unwrap_or(u64::MAX);
            return Err(damaged(format!(
                "{} bytes long instead of {expected}",
                map.len()
            )));
        }
        if Fingerprint::of(&map[HEADER..]) != header.payload {
            return Err(damaged("the checksum does not hold".to_owned()));
        }
        let counts = ByteCounts::from_bytes(&map[HEADER..HEADER + ByteCounts::ENCODED])
            .ok_or_else(|| damaged("no byte counts".to_owned()))?;
        Ok(Self {
            header,
            counts,
            map,
            corpus,
        })
    }

    /// What the tokens were made of, for messages.
    pub fn corpus(&self) -> &Path {
        &self.corpus
    }

    /// Equal for equal sources, tokenizer and split.
    pub fn fingerprint(&self) -> u64 {
        self.header.source
    }

    /// How many text files went in.
    pub fn files(&self) -> u64 {
        self.header.files
    }

    /// How many files were passed over.
    pub fn skipped(&self) -> Skipped {
        let [hidden, binary, empty] = self.header.skipped;
        Skipped {
            hidden,
            binary,
            empty,
        }
    }

    /// Number of ids in a part.
    pub fn tokens(&self, split: Split) -> u64 {
        self.header.tokens[split as usize]
    }

    /// Number of bytes that the ids of a part stand for; a separator of the byte tokenizer counts.
    pub fn bytes(&self, split: Split) -> u64 {
        self.header.bytes[split as usize]
    }

    /// Bytes per token, averaged over a part.
    pub fn bytes_per_token(&self, split: Split) -> f64 {
        self.bytes(split) as f64 / self.tokens(split).max(1) as f64
    }

    /// Counts of byte pairs in the training text.
    pub fn counts(&self) -> &ByteCounts {
        &self.counts
    }

    /// Copies `ids.len()` ids of a part, from index `start`.
    ///
    /// # Panics
    /// If the range leaves the part: callers cut windows by [`Self::tokens`].
    pub fn read(&self, split: Split, start: u64, ids: &mut [i32]) {
        let range = self.byte_range(split, start, ids.len() as u64);
        let bytes = &self.map[range];
        // Ids are below 2^31: `write` checks the vocabulary.
        if self.header.width == 2 {
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
    }

    /// False for a token file of the same texts among files that were passed over, made when those
    /// counted in the split: it has the fingerprint of the texts alone.
    fn has_split_of(&self, texts: &Texts<'_>) -> bool {
        (self.skipped().unusable() > 0) == (texts.skipped.unusable() > 0)
    }

    fn byte_range(&self, split: Split, start: u64, length: u64) -> Range<usize> {
        assert!(
            start
                .checked_add(length)
                .is_some_and(|end| end <= self.tokens(split)),
            "ids {start}..+{length} of {} {split} ids",
            self.tokens(split)
        );
        let first = match split {
            Split::Training => start,
            Split::Validation => self.tokens(Split::Training) + start,
        };
        let offset = |id: u64| {
            usize::try_from(id * self.header.width).expect("a mapped file fits the address space")
                + HEADER
                + ByteCounts::ENCODED
        };
        offset(first)..offset(first + length)
    }
}

/// The files that are text, in order, and what was passed over.
struct Texts<'a> {
    files: Vec<&'a Path>,
    skipped: Skipped,
}

impl Texts<'_> {
    /// True if files are held out as wholes, false if a part of each is.
    fn are_split_by_file(&self) -> bool {
        self.files.len() >= HOLD_OUT_EVERY
    }
}

/// Fingerprint of sources, tokenizer and split: contents and sizes, not names or times.
fn fingerprint<'a>(
    corpus: &'a Corpus,
    tokenizer: &Tokenizer,
) -> Result<(u64, Texts<'a>), DataError> {
    let mut hash = Fingerprint::default();
    hash.update(&VERSION.to_le_bytes());
    hash.update(&(HOLD_OUT_EVERY as u64).to_le_bytes());
    hash.update(&tokenizer.fingerprint().to_le_bytes());
    let mut texts = Texts {
        files: Vec::new(),
        skipped: corpus.skipped,
    };
    let mut cut_elsewhere = false;
    for path in &corpus.files {
        if let Some(text) = corpus.read(path, &mut texts.skipped)? {
            hash.update(&Fingerprint::of(text.as_bytes()).to_le_bytes());
            cut_elsewhere |= cut(&text, reach(&text)) != cut(&text, usize::MAX);
            texts.files.push(path);
        }
    }
    if texts.skipped.unusable() > 0 || (cut_elsewhere && !texts.are_split_by_file()) {
        hash.update(&SPLIT.to_le_bytes());
    }
    Ok((hash.finish(), texts))
}

/// Tokenises the corpus into `path`: training text in a first pass, validation text in a second.
fn write(
    path: &Path,
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    source: u64,
    texts: &Texts<'_>,
) -> Result<(), DataError> {
    let vocab = tokenizer.vocab_size() as u64;
    if i32::try_from(vocab).is_err() {
        return Err(DataError::Encode {
            path: corpus.name.clone(),
            reason: format!("ids up to {vocab} do not fit 31 bits"),
        });
    }
    let width = if vocab <= 1 << 16 { 2 } else { 4 };
    let Skipped {
        hidden,
        binary,
        empty,
    } = texts.skipped;
    let mut header = Header {
        version: VERSION,
        width,
        vocab,
        source,
        files: texts.files.len() as u64,
        skipped: [hidden, binary, empty],
        ..Header::default()
    };
    let mut counts = ByteCounts::default();
    let whole_files = texts.are_split_by_file();
    let mut payload = Vec::new();
    for split in [Split::Training, Split::Validation] {
        for (index, file) in texts.files.iter().enumerate() {
            let held_out = index % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1;
            if whole_files && held_out != (split == Split::Validation) {
                continue;
            }
            // It was text when its fingerprint was taken; nobody counts what is changed meanwhile.
            let Some(text) = corpus.read(file, &mut Skipped::default())? else {
                continue;
            };
            let part = if whole_files {
                &text[..]
            } else {
                part_of(&text, split)
            };
            let mut ids = Vec::with_capacity(part.len() + 1);
            tokenizer.encode_into(part, file, &mut ids)?;
            ids.extend(tokenizer.separator());
            let separator_bytes = u64::from(matches!(tokenizer, Tokenizer::Bytes));
            header.tokens[split as usize] += ids.len() as u64;
            header.bytes[split as usize] += part.len() as u64 + separator_bytes;
            if split == Split::Training {
                counts.add_document(part.as_bytes());
            }
            if width == 2 {
                let narrow = ids.iter().map(|&id| u16::try_from(id).unwrap_or(u16::MAX));
                payload.extend(narrow.flat_map(u16::to_le_bytes));
            } else {
                payload.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
            }
        }
    }
    let counts = counts.to_bytes();
    let mut sum = Fingerprint::default();
    sum.update(&counts);
    sum.update(&payload);
    header.payload = sum.finish();
    durable::write_file::<io::Error>(path, |out| {
        out.write_all(&header.to_bytes())?;
        out.write_all(&counts)?;
        out.write_all(&payload)
    })
    .map_err(DataError::io(path, "write"))
}

/// The first 95 % of a text, or the rest.
fn part_of(text: &str, split: Split) -> &str {
    let cut = cut(text, reach(text));
    match split {
        Split::Training => &text[..cut],
        Split::Validation => &text[cut..],
    }
}

/// How far before the last 5 % of a text they may begin.
fn reach(text: &str) -> usize {
    text.len() / HOLD_OUT_EVERY
}

/// Where the last 5 % of a text begin: at the last line start before them that lies within `reach`,
/// or else at a character, for a text may be one long line.
fn cut(text: &str, reach: usize) -> usize {
    let aim = text.len() - text.len() / HOLD_OUT_EVERY;
    // A line starts behind a line end, which may lie one byte further back.
    let first = aim.saturating_sub(reach).saturating_sub(1);
    let newline = text.as_bytes()[first..aim]
        .iter()
        .rposition(|&byte| byte == b'\n');
    newline.map_or_else(|| text.floor_char_boundary(aim), |at| first + at + 1)
}

#[cfg(test)]
mod tests;
