//! A 64-bit fingerprint of bytes, for files that should be what they were.
//!
//! FNV-1a's step on 8-byte little-endian words, then on the tail byte by byte, then on the length.
//! `hash -> (hash ^ word) * odd` is a bijection for a fixed word and injective in the word, so any
//! change confined to one word changes the result: every flipped bit is found, and a cut is found
//! by the length. It guards against accidents, not against forgery.

/// FNV's 64-bit prime.
const PRIME: u64 = 0x0000_0100_0000_01b3;
/// FNV's 64-bit offset basis.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// A fingerprint in the making.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    hash: u64,
    length: u64,
    tail: [u8; 8],
    tail_len: usize,
}

impl Default for Fingerprint {
    fn default() -> Self {
        Self {
            hash: BASIS,
            length: 0,
            tail: [0; 8],
            tail_len: 0,
        }
    }
}

impl Fingerprint {
    /// The fingerprint of `bytes`.
    pub fn of(bytes: &[u8]) -> u64 {
        let mut fingerprint = Self::default();
        fingerprint.update(bytes);
        fingerprint.finish()
    }

    /// Continues with `bytes`; how they are cut into calls does not matter.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.length = self.length.wrapping_add(bytes.len() as u64);
        if self.tail_len > 0 {
            let take = bytes.len().min(8 - self.tail_len);
            self.tail[self.tail_len..self.tail_len + take].copy_from_slice(&bytes[..take]);
            self.tail_len += take;
            bytes = &bytes[take..];
            if self.tail_len < 8 {
                return;
            }
            self.step(u64::from_le_bytes(self.tail));
            self.tail_len = 0;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.step(u64::from_le_bytes(*word));
        }
        self.tail[..rest.len()].copy_from_slice(rest);
        self.tail_len = rest.len();
    }

    /// The fingerprint of everything so far.
    pub fn finish(&self) -> u64 {
        let mut last = self.clone();
        for &byte in &self.tail[..self.tail_len] {
            last.step(u64::from(byte));
        }
        last.step(self.length);
        // The multiplication only carries upwards: fold the high half down.
        last.hash ^ (last.hash >> 32)
    }

    fn step(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(PRIME);
    }
}

#[cfg(test)]
mod tests {
    use super::Fingerprint;

    #[test]
    fn cuts_into_calls_do_not_matter() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        for cut in [0, 1, 7, 8, 9, 500, 999] {
            let mut fingerprint = Fingerprint::default();
            fingerprint.update(&bytes[..cut]);
            fingerprint.update(&bytes[cut..]);
            assert_eq!(
                fingerprint.finish(),
                Fingerprint::of(&bytes),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let bytes: Vec<u8> = (0..77u8).map(|i| i.wrapping_mul(31)).collect();
        let whole = Fingerprint::of(&bytes);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(Fingerprint::of(&flipped), whole, "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert_ne!(Fingerprint::of(&bytes[..length]), whole, "length {length}");
        }
    }
}
