//! From packed matrices back to f32 (numerics §2).
//!
//! Two answers to two questions. [`dequantize`]: what does the matrix stand for? Code times the
//! whole scale, in the order of TransformerEngine's dequantize kernel. [`decode_operand`]: what
//! does a GEMM multiply? Code times block scale, exact in f32 (and in bf16), the tensor scale left
//! for after.

use rayon::prelude::*;

use super::elements;
use super::strip::{GROUP, PARALLEL_FROM};
use crate::format::scale::decode_factor;
use crate::format::{BlockScales, PackedMatrix, e4m3, e8m0};

/// Rows per task.
const ROWS: usize = 16;

/// The values that a packed matrix stands for, `[rows, k]`.
///
/// One f32 product per element: `code * ((block_scale * amax) * f32(1 / q_max))`. Behind a Hadamard
/// transform the values are in the rotated domain.
///
/// # Source
/// TE `dequantize_nvfp4.cuh`.
pub fn dequantize(matrix: &PackedMatrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.rows() * matrix.k()];
    dequantize_into(matrix, &mut values);
    values
}

/// [`dequantize`] into memory that is there already: fresh pages cost more than the arithmetic.
///
/// # Panics
/// If `values` does not have `rows * k` elements.
pub fn dequantize_into(matrix: &PackedMatrix, values: &mut [f32]) {
    let scale = matrix.tensor_scale();
    assert_eq!(
        values.len(),
        matrix.rows() * matrix.k(),
        "the values do not fill the shape"
    );
    decode(matrix, matrix.k(), values, |row, block_scale| {
        decode_factor(block_scale, scale.row_amax(row), scale.q_max)
    });
}

/// Code times block scale, `[rows, padded_k]`: what a GEMM multiplies before the tensor scales.
///
/// Exact for NVFP4 and the MX formats: the product has at most six significant bits, so it also
/// fits bf16. With f32 block scales (FP8 in blocks) it is rounded once.
pub fn decode_operand(matrix: &PackedMatrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.rows() * matrix.padded_k()];
    decode(matrix, matrix.padded_k(), &mut values, |_, block_scale| {
        block_scale
    });
    values
}

/// The first `width` elements of every row, each block multiplied with its factor.
fn decode(
    matrix: &PackedMatrix,
    width: usize,
    values: &mut [f32],
    factor: impl Fn(usize, f32) -> f32 + Sync,
) {
    if values.is_empty() {
        return;
    }
    let work = |buffers: &mut RowBuffers, (i, rows): (usize, &mut [f32])| {
        for (r, out) in rows.chunks_exact_mut(width).enumerate() {
            decode_row(matrix, i * ROWS + r, &factor, buffers, out);
        }
    };
    if values.len() < PARALLEL_FROM {
        let mut buffers = RowBuffers::default();
        values
            .chunks_mut(ROWS * width)
            .enumerate()
            .for_each(|task| work(&mut buffers, task));
    } else {
        let tasks = values.par_chunks_mut(ROWS * width).enumerate();
        tasks.for_each_init(RowBuffers::default, work);
    }
}

/// Working memory of one row.
#[derive(Default)]
struct RowBuffers {
    codes: Vec<u8>,
    factors: Vec<f32>,
}

fn decode_row(
    matrix: &PackedMatrix,
    row: usize,
    factor: &impl Fn(usize, f32) -> f32,
    buffers: &mut RowBuffers,
    out: &mut [f32],
) {
    let (padded_k, block) = (matrix.padded_k(), matrix.format().block_dims());
    // One factor per group of sixteen, as the element loops want them.
    let RowBuffers { codes, factors } = buffers;
    factors.resize(padded_k.div_ceil(GROUP), 0.0);
    let span =
        row / block.rows * (padded_k / block.k)..(row / block.rows + 1) * (padded_k / block.k);
    let groups = factors.chunks_mut(block.k.div_ceil(GROUP));
    match matrix.block_scales() {
        BlockScales::None => factors.fill(factor(row, 1.0)),
        BlockScales::E4m3(bytes) => {
            for (groups, &byte) in groups.zip(&bytes[span]) {
                groups.fill(factor(row, e4m3::decode(byte)));
            }
        }
        BlockScales::E8m0(bytes) => {
            for (groups, &byte) in groups.zip(&bytes[span]) {
                groups.fill(factor(row, e8m0::decode(byte)));
            }
        }
        BlockScales::F32(scales) => {
            for (groups, &scale) in groups.zip(&scales[span]) {
                groups.fill(factor(row, scale));
            }
        }
    }
    match matrix.format().code_bits() {
        4 => {
            codes.resize(padded_k, 0);
            elements::unpack(&matrix.codes()[row * padded_k / 2..][..padded_k / 2], codes);
            elements::decode_e2m1(codes, factors, out);
        }
        _ => elements::decode_e4m3(&matrix.codes()[row * padded_k..][..padded_k], factors, out),
    }
}
