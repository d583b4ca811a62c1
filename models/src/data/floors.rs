//! What byte counts alone predict: the floors that a model's bits per byte are compared with.
//!
//! Counts of bytes (order 0) and of pairs of neighbours (order 1) are taken from the training text
//! and smoothed by adding one to each of the 256 outcomes; the floors are the cross-entropies of
//! validation bytes under them. The separator between documents counts as the byte 0, and a text
//! starts after one.

use super::fingerprint::Fingerprint;

/// Number of byte values.
const BYTES: usize = 256;

/// Counts of pairs of neighbouring bytes in the training text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteCounts {
    /// `[previous, next]`, row-major.
    pairs: Vec<u64>,
}

/// Cross-entropies of some text under counts of another, in bits per byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floors {
    /// From counts of single bytes.
    pub order0: f64,
    /// From counts of pairs.
    pub order1: f64,
}

impl Default for ByteCounts {
    fn default() -> Self {
        Self {
            pairs: vec![0; BYTES * BYTES],
        }
    }
}

impl ByteCounts {
    /// Size of [`Self::to_bytes`].
    pub const ENCODED: usize = BYTES * BYTES * 8;

    /// Adds the pairs of a document and of the separator behind it.
    pub fn add_document(&mut self, text: &[u8]) {
        let mut previous = 0;
        for &byte in text.iter().chain(std::iter::once(&0)) {
            self.pairs[usize::from(previous) * BYTES + usize::from(byte)] += 1;
            previous = byte;
        }
    }

    /// The floors of `text`, a list of windows that each start after a separator.
    ///
    /// An empty text has floors of 0.
    pub fn floors<'a>(&self, windows: impl Iterator<Item = &'a [u8]>) -> Floors {
        let mut contexts = [0u64; BYTES];
        let mut singles = [0u64; BYTES];
        for (previous, row) in self.pairs.chunks_exact(BYTES).enumerate() {
            for (next, &count) in row.iter().enumerate() {
                contexts[previous] += count;
                singles[next] += count;
            }
        }
        let total: u64 = singles.iter().sum();
        let bits =
            |count: u64, of: u64| ((of + BYTES as u64) as f64).log2() - ((count + 1) as f64).log2();
        let (mut order0, mut order1, mut length) = (0.0, 0.0, 0u64);
        for window in windows {
            let mut previous = 0usize;
            for &byte in window {
                let next = usize::from(byte);
                order0 += bits(singles[next], total);
                order1 += bits(self.pairs[previous * BYTES + next], contexts[previous]);
                previous = next;
                length += 1;
            }
        }
        let length = length.max(1) as f64;
        Floors {
            order0: order0 / length,
            order1: order1 / length,
        }
    }

    /// Little-endian, row by row.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.pairs
            .iter()
            .flat_map(|count| count.to_le_bytes())
            .collect()
    }

    /// The inverse of [`Self::to_bytes`]; `None` if the size is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<8>();
        (words.len() == BYTES * BYTES && rest.is_empty()).then(|| Self {
            pairs: words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
        })
    }

    /// Tells counts apart.
    pub fn fingerprint(&self) -> u64 {
        Fingerprint::of(&self.to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_counts_every_byte_costs_eight_bits() {
        let floors = ByteCounts::default().floors([&b"abc"[..]].into_iter());
        assert_eq!((floors.order0, floors.order1), (8.0, 8.0));
    }

    #[test]
    fn a_text_that_alternates_is_known_to_order_one_only() {
        let mut counts = ByteCounts::default();
        counts.add_document("ab".repeat(100_000).as_bytes());
        let text = "ab".repeat(1000);
        let floors = counts.floors([text.as_bytes()].into_iter());
        // One bit per byte, plus 256 / 200001 of smoothing in nats.
        assert!((floors.order0 - 1.0).abs() < 0.01, "{floors:?}");
        // A pair costs 256 / 100000 of smoothing; the first byte of 2000 one log2(257).
        assert!(floors.order1 < 0.02, "{floors:?}");
    }

    #[test]
    fn counts_survive_a_round_trip() {
        let mut counts = ByteCounts::default();
        counts.add_document(b"hello");
        let bytes = counts.to_bytes();
        assert_eq!(ByteCounts::from_bytes(&bytes), Some(counts));
        assert_eq!(ByteCounts::from_bytes(&bytes[1..]), None);
    }
}
