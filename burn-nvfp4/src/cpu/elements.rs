//! The loops over elements: amax, encode and decode of sixteen at a time.
//!
//! All formats share them. A group of sixteen is one AVX-512 register or two of AVX2; scales arrive
//! one per group, so nothing here knows what a block is. Plain array loops without branches,
//! compiled once per vector unit. Rust never contracts a product and a sum, so the bits are the
//! same in each.

use multiversion::multiversion;

use super::strip::GROUP;
use crate::format::{e2m1, e4m3};

/// All ones if these magnitude bits are a NaN's, else zero.
///
/// Arithmetic in place of a comparison: LLVM makes a branch of that, and sixteen scalar steps.
#[inline(always)]
pub(super) const fn nan_mask(magnitude: u32) -> u32 {
    (f32::INFINITY
        .to_bits()
        .wrapping_sub(magnitude)
        .cast_signed()
        >> 31)
        .cast_unsigned()
}

/// Keeps LLVM from vectorising the loop over groups in place of the sixteen elements inside it.
///
/// Once it has unrolled the inner loop it would load element `i` of sixteen groups at a time, with
/// gathers and scatters, several times slower. An empty barrier costs no instruction.
#[inline(always)]
pub(super) fn one_group_at_a_time() {
    std::hint::black_box(());
}

/// `max |x|` of every group, NaN skipped.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn group_amax(values: &[f32], amax: &mut [f32]) {
    let (groups, _) = values.as_chunks::<GROUP>();
    for (group, amax) in groups.iter().zip(amax) {
        one_group_at_a_time();
        // As integers: the order of non-negative floats is that of their bits, and an integer
        // maximum may be taken in any order, which lets the reduction be a tree. NaN counts as -1.
        let mut largest = 0_i32;
        for value in group {
            let magnitude = value.to_bits() & 0x7FFF_FFFF;
            largest = largest.max((magnitude | nan_mask(magnitude)).cast_signed());
        }
        *amax = f32::from_bits(largest.cast_unsigned());
    }
}

/// E2M1 codes of `value * encode`, rounded to nearest.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn encode_e2m1(values: &[f32], encode: &[f32], codes: &mut [u8]) {
    let ((values, _), (codes, _)) = (values.as_chunks::<GROUP>(), codes.as_chunks_mut::<GROUP>());
    for ((values, encode), codes) in values.iter().zip(encode).zip(codes) {
        one_group_at_a_time();
        for i in 0..GROUP {
            codes[i] = e2m1::encode_rne(values[i] * encode);
        }
    }
}

/// E2M1 codes of `value * encode`, rounded by one random byte per element, which `codes` holds.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn encode_e2m1_stochastic(values: &[f32], encode: &[f32], codes: &mut [u8]) {
    let ((values, _), (codes, _)) = (values.as_chunks::<GROUP>(), codes.as_chunks_mut::<GROUP>());
    for ((values, encode), codes) in values.iter().zip(encode).zip(codes) {
        one_group_at_a_time();
        for i in 0..GROUP {
            codes[i] = e2m1::encode_stochastic(values[i] * encode, codes[i]);
        }
    }
}

/// E4M3 codes of `value * encode`, rounded to nearest.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn encode_e4m3(values: &[f32], encode: &[f32], codes: &mut [u8]) {
    let ((values, _), (codes, _)) = (values.as_chunks::<GROUP>(), codes.as_chunks_mut::<GROUP>());
    for ((values, encode), codes) in values.iter().zip(encode).zip(codes) {
        one_group_at_a_time();
        for i in 0..GROUP {
            codes[i] = e4m3::encode(values[i] * encode);
        }
    }
}

/// `code * decode` for E2M1 codes, one per byte; `values` may end inside a group.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn decode_e2m1(codes: &[u8], decode: &[f32], values: &mut [f32]) {
    let (groups, rest) = values.as_chunks_mut::<GROUP>();
    let (code_groups, _) = codes.as_chunks::<GROUP>();
    for ((values, codes), decode) in groups.iter_mut().zip(code_groups).zip(decode) {
        one_group_at_a_time();
        for i in 0..GROUP {
            values[i] = e2m1::decode(codes[i]) * decode;
        }
    }
    let tail = codes.iter().skip(groups.len() * GROUP);
    for (value, &code) in rest.iter_mut().zip(tail) {
        *value = e2m1::decode(code) * decode[groups.len()];
    }
}

/// `code * decode` for E4M3 codes; `values` may end inside a group.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn decode_e4m3(codes: &[u8], decode: &[f32], values: &mut [f32]) {
    let (groups, rest) = values.as_chunks_mut::<GROUP>();
    let (code_groups, _) = codes.as_chunks::<GROUP>();
    for ((values, codes), decode) in groups.iter_mut().zip(code_groups).zip(decode) {
        one_group_at_a_time();
        for i in 0..GROUP {
            values[i] = e4m3::decode(codes[i]) * decode;
        }
    }
    let tail = codes.iter().skip(groups.len() * GROUP);
    for (value, &code) in rest.iter_mut().zip(tail) {
        *value = e4m3::decode(code) * decode[groups.len()];
    }
}

/// Packs the codes of a row, two to a byte.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn pack(codes: &[u8], packed: &mut [u8]) {
    crate::format::packing::pack_into(codes, packed);
}

/// Unpacks the codes of a row, one to a byte.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
pub(super) fn unpack(packed: &[u8], codes: &mut [u8]) {
    crate::format::packing::unpack_into(packed, codes);
}
