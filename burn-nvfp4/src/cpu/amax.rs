//! `max |x|`, with NaN skipped: the only reduction that quantization needs (numerics §2).
//!
//! A maximum is exact and does not depend on order, so lanes and threads may split it freely.

use multiversion::multiversion;
use rayon::prelude::*;

use super::element::Element;

/// Independent running maxima, enough for two AVX-512 registers.
const LANES: usize = 32;

/// Elements per task; below this the calling thread does it alone.
const CHUNK: usize = 1 << 16;

/// The largest absolute value of a slice; NaN is skipped, an empty slice has 0.
pub fn tensor_amax<E: Element>(x: &[E]) -> f32 {
    if x.len() <= CHUNK {
        return slice_amax(x);
    }
    x.par_chunks(CHUNK)
        .map(|chunk| slice_amax(chunk))
        .reduce(|| 0.0, f32::max)
}

/// [`tensor_amax`] on the calling thread.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn slice_amax<E: Element>(x: &[E]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(chunk[lane].to_f32().abs(), lanes[lane]);
        }
    }
    for (lane, value) in rest.iter().enumerate() {
        lanes[lane] = larger(value.to_f32().abs(), lanes[lane]);
    }
    lanes.into_iter().fold(0.0, |amax, lane| larger(lane, amax))
}

/// `max(a, amax)`; keeps `amax` if `a` is NaN. Not `f32::max`: this is one instruction.
#[inline(always)]
pub(super) const fn larger(a: f32, amax: f32) -> f32 {
    if a > amax { a } else { amax }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_is_skipped_wherever_it_stands() {
        for len in [1, 31, 32, 33, 100] {
            for position in 0..len {
                let mut x = vec![-1.0_f32; len];
                x[position] = f32::NAN;
                let expected = if len == 1 { 0.0 } else { 1.0 };
                assert_eq!(tensor_amax(&x), expected, "NaN at {position} of {len}");
                x[position] = -2.0;
                assert_eq!(tensor_amax(&x), 2.0, "-2 at {position} of {len}");
            }
        }
        assert_eq!(tensor_amax::<f32>(&[]), 0.0);
        assert_eq!(tensor_amax(&[f32::NEG_INFINITY, f32::NAN]), f32::INFINITY);
    }

    #[test]
    fn every_element_of_a_long_slice_counts() {
        let mut x = vec![0.5_f32; 3 * CHUNK + 7];
        for position in [0, CHUNK - 1, CHUNK, 3 * CHUNK + 6] {
            x[position] = 3.0;
            assert_eq!(tensor_amax(&x), 3.0);
            x[position] = 0.5;
        }
    }
}
