//! Sixteen bf16 elements as eight words of two, for the device whose time goes into them.
//!
//! An f32 of each element is one operation from its word, but every operation counts where a memory
//! of 4 TB/s waits for it. So the amax is taken on words, three at a time, before anything is
//! unpacked, and what can be a product is one: an NVIDIA GPU multiplies integers beside the pipe of
//! shifts, masks and comparisons, which is the full one.

use cubecl::prelude::*;

use super::arithmetic::INFINITY;
use super::group::{Access, GROUP, Geometry, Place, small};

/// bf16 elements of a vector of sixteen bytes.
pub(super) const VECTOR: usize = 8;

/// Reads the group of a unit along the columns; zeros beyond the source. The first of two elements
/// is the lower half of a word.
#[cube]
pub(super) fn load_pairs<F: Float, N: Size>(
    source: &Array<Vector<F, N>>,
    place: Place,
    geometry: &Geometry,
    #[comptime] access: Access,
) -> Array<u32> {
    let mut words = Array::<u32>::new(8usize);
    let col = place.group * GROUP;
    let start = place.row as usize * geometry.stride as usize + col as usize / VECTOR;
    #[unroll]
    for v in 0..2usize {
        let beyond = comptime!(if access.whole { 0 } else { small(8 * v) });
        // Words in both branches: halves that meet behind a branch are put together one by one.
        let mut four = Vector::<u32, Const<4>>::cast_from(0u32);
        if place.row < geometry.rows && col + beyond < geometry.cols {
            four = Vector::<u32, Const<4>>::reinterpret(source[start + v]);
        }
        #[unroll]
        for i in 0..4usize {
            words[v * 4 + i] = four[i];
        }
    }
    words
}

/// The elements as f32; `zero` is zero, and best one that no compiler knows.
#[cube]
pub(super) fn unpack(words: &Array<u32>, values: &mut Array<f32>, zero: u32) {
    let to_upper = 0x1_0000u32 + zero;
    #[unroll]
    for i in 0..8usize {
        values[2 * i] = f32::reinterpret(words[i] * to_upper);
        values[2 * i + 1] = f32::reinterpret(words[i] & 0xFFFF_0000u32);
    }
}

/// `max |x|`, NaN skipped; takes the sign of every NaN, for the codes of one have none.
#[cube]
pub(super) fn pairs_amax(words: &mut Array<u32>, zero: u32) -> f32 {
    // Without the sign and one up; the other element below decides nothing but between equals.
    let upper = 2u32 + zero;
    let lower = 0x2_0000u32 + zero;
    let mut of_upper = words[0] * upper;
    let mut of_lower = words[0] * lower;
    #[unroll]
    for i in 1..8usize {
        of_upper = u32::max(of_upper, words[i] * upper);
        of_lower = u32::max(of_lower, words[i] * lower);
    }
    let mut largest = (u32::max(of_upper, of_lower) >> 1u32) & 0x7FFF_0000u32;
    if largest > INFINITY {
        largest = 0u32;
        #[unroll]
        for i in 0..8usize {
            let upper = words[i] & 0x7FFF_0000u32;
            let lower = (words[i] << 16u32) & 0x7FFF_0000u32;
            let (upper_is_nan, lower_is_nan) = (upper > INFINITY, lower > INFINITY);
            largest = u32::max(largest, select(upper_is_nan, 0u32, upper));
            largest = u32::max(largest, select(lower_is_nan, 0u32, lower));
            words[i] &= select(upper_is_nan, 0x7FFF_FFFFu32, 0xFFFF_FFFFu32);
            words[i] &= select(lower_is_nan, 0xFFFF_7FFFu32, 0xFFFF_FFFFu32);
        }
    }
    f32::reinterpret(largest)
}
