//! Philox4x32-10 and the key that names the random bytes of one operand (numerics §5).
//!
//! A counter-based generator: bits are a function of key and counter, so there is no state to
//! carry, to save or to share between threads. Any element's byte can be computed anywhere, alone,
//! and the same step gives the same bits on every backend.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11); constants and known
//! answers from the authors' Random123.

use multiversion::multiversion;

/// Bytes of one Philox block: one per element of a 16-element quantization block.
pub const BLOCK_BYTES: usize = 16;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// 2^64 divided by the golden ratio, odd: multiples of it differ in many bits.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Where other counters have their stream, those of sign flips have this.
const SIGNS: u8 = 253;

/// Blocks computed side by side, one per vector lane.
const LANES: usize = 16;

/// Four random words for a counter and a key.
///
/// ```
/// use burn_nvfp4::rng::philox4x32_10;
/// assert_eq!(philox4x32_10([0; 4], [0; 2])[0], 0x6627_e8d5); // Random123's known answer
/// ```
#[inline]
pub const fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    let mut round = 0;
    while round < ROUNDS {
        [c0, c1, c2, c3] = philox_round([c0, c1, c2, c3], [k0, k1]);
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
        round += 1;
    }
    [c0, c1, c2, c3]
}

#[inline(always)]
const fn philox_round([c0, c1, c2, c3]: [u32; 4], [k0, k1]: [u32; 2]) -> [u32; 4] {
    let (low0, high0) = wide_product(MULTIPLIERS[0], c0);
    let (low1, high1) = wide_product(MULTIPLIERS[1], c2);
    [high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0]
}

/// Low and high half of a 32 x 32 bit product.
#[inline(always)]
const fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let product = (a as u64) * (b as u64);
    ((product & 0xFFFF_FFFF) as u32, (product >> 32) as u32)
}

/// Names the random bytes of one quantized operand; pure data.
///
/// The layer is not in the key. The amax of what is quantized stands in the counter in its place:
/// another layer has another gradient, hence another amax and other bits. What is read of the data
/// of one micro-batch has that in its key, because the amax of a bf16 gradient has eight bits only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RandomKey {
    /// Seed of the run.
    pub seed: u64,
    /// Optimizer step; the low 44 bits count.
    pub step: u64,
    /// Which micro-batch of the step, counted over all ranks; only data streams have it in their
    /// bytes ([`Stream::is_data`]).
    pub micro_batch: u32,
    /// Which of a step's quantizations.
    pub stream: Stream,
}

/// Which quantization of a step draws random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// The output gradient as dgrad reads it.
    Dgrad,
    /// The output gradient as wgrad reads it.
    Wgrad,
    /// The weight as dgrad reads it.
    DgradWeight,
    /// The activation as wgrad reads it.
    WgradX,
    /// Anything else; distinct from the named streams below 251.
    Other(u8),
}

impl Stream {
    /// The eight bits that stand in the counter.
    pub const fn id(self) -> u8 {
        match self {
            Self::Dgrad => 0,
            Self::Wgrad => 1,
            Self::DgradWeight => 254,
            Self::WgradX => 255,
            Self::Other(id) => id.wrapping_add(2),
        }
    }

    /// True for what depends on the data of a micro-batch. A weight does not: however many
    /// micro-batches and ranks a step has, all of them read the same bytes.
    pub const fn is_data(self) -> bool {
        match self {
            Self::Dgrad | Self::Wgrad | Self::WgradX => true,
            Self::DgradWeight | Self::Other(_) => false,
        }
    }
}

impl RandomKey {
    /// The Philox key of the random bytes: low and high half of the seed, and in those of data the
    /// micro-batch. The first one has the bytes that the seed has alone.
    pub const fn key_words(&self) -> [u32; 2] {
        let micro_batch = if self.stream.is_data() {
            self.micro_batch as u64
        } else {
            0
        };
        halves(self.seed ^ micro_batch.wrapping_mul(GOLDEN))
    }

    /// The Philox counter of one 16-element block of the packed operand.
    ///
    /// `block` is `row * (padded_k / 16) + block in row`, contraction axis last; its low 44 bits
    /// count. `amax` is that of the tensor as it is quantized, so behind a Hadamard transform; of a
    /// row-scaled tensor the largest.
    pub const fn counter(&self, amax: f32, block: u64) -> [u32; 4] {
        let block_high = low_word(block >> 32) & 0xFFF;
        let step_high = low_word(self.step >> 32) & 0xFFF;
        let last = self.stream.id() as u32 | block_high << 8 | step_high << 20;
        [low_word(block), low_word(self.step), amax.to_bits(), last]
    }

    /// The sign flips of a random Hadamard transform, bit `i` of 128 for element `i`: equal for
    /// both operands of a GEMM and all micro-batches of a step, so nothing of these is in counter
    /// or key (numerics §11).
    pub const fn signs(&self) -> [u32; 4] {
        let gemm = match self.stream {
            Stream::Dgrad | Stream::DgradWeight => 0,
            Stream::Wgrad | Stream::WgradX => 1,
            Stream::Other(_) => 2,
        };
        let [_, step, _, last] = self.counter(0.0, 0);
        let last = (last & 0xFFF0_0000) | SIGNS as u32;
        philox4x32_10([0, step, gemm, last], halves(self.seed))
    }

    /// The random bytes of one 16-element block, in element order.
    pub const fn block_bytes(&self, amax: f32, block: u64) -> [u8; BLOCK_BYTES] {
        bytes_of(philox4x32_10(self.counter(amax, block), self.key_words()))
    }

    /// The random bytes of consecutive blocks from `first_block` on, one byte per element.
    pub fn fill(&self, amax: f32, first_block: u64, bytes: &mut [u8]) {
        fill_lanes(self, amax, first_block, bytes);
    }
}

#[inline(always)]
const fn low_word(x: u64) -> u32 {
    (x & 0xFFFF_FFFF) as u32
}

#[inline(always)]
const fn halves(x: u64) -> [u32; 2] {
    [low_word(x), low_word(x >> 32)]
}

/// The sixteen bytes of four words, little endian.
#[inline(always)]
const fn bytes_of([w0, w1, w2, w3]: [u32; 4]) -> [u8; BLOCK_BYTES] {
    let wide = w0 as u128 | (w1 as u128) << 32 | (w2 as u128) << 64 | (w3 as u128) << 96;
    wide.to_le_bytes()
}

/// Runs [`LANES`] blocks side by side, one per vector lane; each is exactly a scalar Philox.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
fn fill_lanes(key: &RandomKey, amax: f32, first_block: u64, bytes: &mut [u8]) {
    let mut block = first_block;
    for chunk in bytes.chunks_mut(LANES * BLOCK_BYTES) {
        let mut counters = [[0u32; LANES]; 4];
        let [c0, c1, c2, c3] = &mut counters;
        for lane in 0..LANES {
            [c0[lane], c1[lane], c2[lane], c3[lane]] =
                key.counter(amax, block.wrapping_add(lane as u64));
        }
        let mut words = key.key_words();
        for _ in 0..ROUNDS {
            for lane in 0..LANES {
                [c0[lane], c1[lane], c2[lane], c3[lane]] =
                    philox_round([c0[lane], c1[lane], c2[lane], c3[lane]], words);
            }
            words = [
                words[0].wrapping_add(WEYL[0]),
                words[1].wrapping_add(WEYL[1]),
            ];
        }
        for (lane, out) in chunk.chunks_mut(BLOCK_BYTES).enumerate() {
            let block_bytes = bytes_of([
                counters[0][lane],
                counters[1][lane],
                counters[2][lane],
                counters[3][lane],
            ]);
            out.copy_from_slice(&block_bytes[..out.len()]);
        }
        block = block.wrapping_add(LANES as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random123_known_answers_hold() {
        let ones = u32::MAX;
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        let known = [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [ones; 4],
                [ones; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                pi,
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, answer) in known {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    const KEY: RandomKey = RandomKey {
        seed: 0x0123_4567_89AB_CDEF,
        step: 0x0FED_CBA9_8765,
        micro_batch: 0,
        stream: Stream::Wgrad,
    };

    #[test]
    fn every_part_of_the_key_has_its_place_in_the_counter() {
        assert_eq!(KEY.key_words(), [0x89AB_CDEF, 0x0123_4567]);
        let counter = KEY.counter(1.0, 0x0ABC_DEF0_1234);
        // Bits beyond 44 are dropped: block 0xABC.. keeps 0xABC, the step keeps 0xFED.
        assert_eq!(
            counter,
            [0xDEF0_1234, 0xCBA9_8765, 0x3F80_0000, 0xFEDA_BC01]
        );
    }

    #[test]
    fn micro_batches_draw_other_bytes_for_data_and_the_same_for_weights_and_signs() {
        let key = |micro_batch, stream| RandomKey {
            micro_batch,
            stream,
            ..KEY
        };
        // Equal amax, equal block: nothing but the micro-batch tells them apart.
        let bytes = |micro_batch, stream| key(micro_batch, stream).block_bytes(1.0, 7);
        for stream in [Stream::Dgrad, Stream::Wgrad, Stream::WgradX] {
            let drawn = [0, 1, 2, u32::MAX].map(|index| bytes(index, stream));
            for (i, one) in drawn.iter().enumerate() {
                assert!(!drawn[..i].contains(one), "{stream:?} {i}");
            }
        }
        for stream in [Stream::DgradWeight, Stream::Other(0)] {
            assert_eq!(bytes(0, stream), bytes(3, stream), "{stream:?}");
        }
        for stream in [Stream::Dgrad, Stream::DgradWeight, Stream::Wgrad] {
            assert_eq!(key(0, stream).signs(), key(3, stream).signs(), "{stream:?}");
        }
    }

    #[test]
    fn filling_equals_block_by_block_for_any_length() {
        for len in [0, 1, 16, 48, 255, 256, 257, 1000] {
            let mut bytes = vec![0; len];
            let first = u64::from(u32::MAX) - 3;
            KEY.fill(0.5, first, &mut bytes);
            for (i, chunk) in bytes.chunks(BLOCK_BYTES).enumerate() {
                let expected = KEY.block_bytes(0.5, first + i as u64);
                assert_eq!(chunk, &expected[..chunk.len()], "block {i} of {len} bytes");
            }
        }
    }
}
