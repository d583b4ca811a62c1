//! The header of a shard, and what follows from it about the file's size.
//!
//! Little-endian: 8 bytes of magic, 12 words of 8 bytes, the fingerprint of both. The ids
//! stand behind it, then zeros up to a multiple of 8, then the end of each document, counted in ids
//! from the start of the shard. Everything read from a file is checked before it is used.

use crate::data::fingerprint::Fingerprint;

pub(super) const MAGIC: [u8; 8] = *b"NVFP4SHD";
/// Version of the layout.
pub const VERSION: u64 = 1;
const FIELDS: usize = 12;
/// Size of the header in bytes.
pub(super) const SIZE: usize = 8 + 8 * FIELDS + 8;
/// Stands for no separator.
const NONE: u64 = u64::MAX;

/// What stands in the header of a shard, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardHeader {
    /// Bytes per id, 2 or 4.
    pub width: u64,
    /// One more than the largest id.
    pub vocab: u64,
    /// Fingerprint of the tokenizer.
    pub tokenizer: u64,
    /// Fingerprint of the inputs and of everything else that decides the ids.
    pub source: u64,
    /// Place of the shard in its folder, counted from 0.
    pub index: u64,
    /// Documents in earlier shards.
    pub first_document: u64,
    /// Ids in this shard.
    pub tokens: u64,
    /// Documents in this shard.
    pub documents: u64,
    /// Bytes of text that the ids stand for; a separator of the byte tokenizer counts.
    pub bytes: u64,
    /// The id behind every document, if there is one.
    pub separator: Option<u32>,
    /// Fingerprint of everything behind the header.
    pub payload: u64,
}

impl ShardHeader {
    fn words(&self) -> [u64; FIELDS] {
        let Self {
            width,
            vocab,
            tokenizer,
            source,
            index,
            first_document,
            tokens,
            documents,
            bytes,
            separator,
            payload,
        } = *self;
        let separator = separator.map_or(NONE, u64::from);
        [
            VERSION,
            width,
            vocab,
            tokenizer,
            source,
            index,
            first_document,
            tokens,
            documents,
            bytes,
            separator,
            payload,
        ]
    }

    /// The bytes of the header.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(self.words().iter().flat_map(|word| word.to_le_bytes()));
        out.extend(Fingerprint::of(&out).to_le_bytes());
        out
    }

    /// Reads and checks the header at the start of a file; the reason if it is none of ours.
    ///
    /// # Errors
    /// One line on what does not hold.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let Some(bytes) = bytes.get(..SIZE) else {
            return Err(format!("{} bytes are too few for a header", bytes.len()));
        };
        let (body, sum) = bytes.split_at(SIZE - 8);
        if !body.starts_with(&MAGIC) {
            return Err("it does not begin like one".to_owned());
        }
        if Fingerprint::of(body).to_le_bytes() != sum {
            return Err("the header's checksum does not hold".to_owned());
        }
        let (words, _) = body[MAGIC.len()..].as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or_default();
        let version = next();
        if version != VERSION {
            return Err(format!("version {version}, {VERSION} is understood"));
        }
        let header = Self {
            width: next(),
            vocab: next(),
            tokenizer: next(),
            source: next(),
            index: next(),
            first_document: next(),
            tokens: next(),
            documents: next(),
            bytes: next(),
            separator: match next() {
                NONE => None,
                id => Some(u32::try_from(id).map_err(|_| format!("{id} is no separator"))?),
            },
            payload: next(),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), String> {
        let width =
            width_of(self.vocab).ok_or_else(|| format!("a vocabulary of {}", self.vocab))?;
        if self.width != width {
            return Err(format!(
                "{} bytes per id, {width} are right for a vocabulary of {}",
                self.width, self.vocab
            ));
        }
        if let Some(id) = self.separator
            && u64::from(id) >= self.vocab
        {
            return Err(format!("separator {id} in a vocabulary of {}", self.vocab));
        }
        if self.documents == 0 && self.tokens > 0 {
            return Err(format!(
                "{} documents of {} ids",
                self.documents, self.tokens
            ));
        }
        Ok(())
    }

    /// Where the ends of the documents begin, in bytes from the start of the file.
    pub(super) fn ends_at(&self) -> Option<u64> {
        let ids = self.tokens.checked_mul(self.width)?;
        ids.checked_add(SIZE as u64)?.checked_next_multiple_of(8)
    }

    /// Size of the whole file; `None` if no file can be that large.
    pub fn file_size(&self) -> Option<u64> {
        self.ends_at()?.checked_add(self.documents.checked_mul(8)?)
    }
}

/// Bytes per id of a vocabulary; `None` if its ids do not fit 31 bits.
pub(crate) fn width_of(vocab: u64) -> Option<u64> {
    match vocab {
        0 => None,
        1..=0x1_0000 => Some(2),
        0x1_0001..=0x7fff_ffff => Some(4),
        0x8000_0000.. => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> ShardHeader {
        ShardHeader {
            width: 2,
            vocab: 300,
            tokenizer: 3,
            source: 4,
            index: 5,
            first_document: 6,
            tokens: 70,
            documents: 8,
            bytes: 90,
            separator: Some(0),
            payload: 11,
        }
    }

    #[test]
    fn headers_survive_a_round_trip() {
        for separator in [None, Some(0), Some(299)] {
            let header = ShardHeader {
                separator,
                ..header()
            };
            let bytes = header.to_bytes();
            assert_eq!(bytes.len(), SIZE);
            assert_eq!(ShardHeader::from_bytes(&bytes), Ok(header));
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = header().to_bytes();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(ShardHeader::from_bytes(&flipped).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(ShardHeader::from_bytes(&bytes[..length]).is_err());
        }
    }

    #[test]
    fn values_that_cannot_be_are_refused_although_the_checksum_holds() {
        let check = |change: &dyn Fn(&mut ShardHeader), reason: &str| {
            let mut header = header();
            change(&mut header);
            let error = ShardHeader::from_bytes(&header.to_bytes()).unwrap_err();
            assert!(error.contains(reason), "{error}");
        };
        check(&|h| h.width = 8, "8 bytes per id, 2 are right");
        check(&|h| h.width = 4, "4 bytes per id");
        check(&|h| h.vocab = 0, "a vocabulary of 0");
        check(&|h| h.vocab = 1 << 31, "a vocabulary of 2147483648");
        check(&|h| h.separator = Some(300), "separator 300");
        check(&|h| h.documents = 0, "0 documents of 70 ids");
        let vast = ShardHeader {
            tokens: u64::MAX,
            ..header()
        };
        assert_eq!(vast.file_size(), None);
    }
}
