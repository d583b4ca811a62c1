//! Weights rounded as NVIDIA's Model Optimizer rounds them.
//!
//! The same grid and the same two scales as [`cpu::quantize`](crate::cpu::quantize) in 1x16 blocks,
//! in another order of operations ([`ModeloptScaling`]), which gives some blocks another scale or
//! an element on a tie another code: for whoever wants the files that Model Optimizer would write.
//!
//! 1. The amax of a block, its scale, and the divisor of its elements.
//! 2. Codes of `element / divisor`, to nearest, ties to even.

use multiversion::multiversion;
use rayon::prelude::*;

use super::{BLOCK, ExportError};
use crate::cpu::{Element, MatrixView};
use crate::format::scale::{ModeloptScaling, NVFP4_Q_MAX};
use crate::format::{BlockScales, BlockShape, Format, PackedMatrix, TensorScale, e2m1};

/// Blocks per task.
const BLOCKS: usize = 1 << 12;

/// Quantizes a weight `[d_output, d_input]` under a tensor amax, which is its own or that of a
/// whole that it is a part of.
///
/// # Errors
/// [`ExportError::RaggedRows`] if rows do not divide into blocks.
///
/// # Source
/// `NVFP4QTensor.quantize` of nvidia-modelopt 0.47, for finite weights.
pub fn quantize_as_modelopt<E: Element>(
    weight: MatrixView<'_, E>,
    amax: f32,
) -> Result<PackedMatrix, ExportError> {
    let (rows, k) = (weight.rows(), weight.cols());
    if !k.is_multiple_of(BLOCK) {
        return Err(ExportError::RaggedRows { k });
    }
    let scaling = ModeloptScaling::new(amax);
    let mut codes = vec![0; rows * k / 2];
    let mut scales = vec![0; rows * k / BLOCK];
    let values = weight.data().par_chunks(BLOCKS * BLOCK);
    let codes_out = codes.par_chunks_mut(BLOCKS * BLOCK / 2);
    values
        .zip(codes_out)
        .zip(scales.par_chunks_mut(BLOCKS))
        .for_each(|((values, codes), scales)| quantize_blocks(values, scaling, codes, scales));
    let format = Format::Nvfp4 {
        block: BlockShape::Row16,
    };
    let tensor_scale = TensorScale {
        amax: vec![amax],
        q_max: NVFP4_Q_MAX,
    };
    let scales = BlockScales::E4m3(scales);
    Ok(PackedMatrix::from_parts(
        (rows, k),
        format,
        codes,
        scales,
        tensor_scale,
    )?)
}

#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
fn quantize_blocks<E: Element>(
    values: &[E],
    scaling: ModeloptScaling,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    let blocks = values.as_chunks::<BLOCK>().0.iter();
    for ((block, codes), scale) in blocks.zip(codes.chunks_exact_mut(BLOCK / 2)).zip(scales) {
        let mut values = [0.0_f32; BLOCK];
        let mut amax = 0.0_f32;
        for i in 0..BLOCK {
            values[i] = block[i].to_f32();
            amax = amax.max(values[i].abs());
        }
        *scale = scaling.block_scale(amax);
        let divisor = scaling.block_divisor(*scale);
        for (i, byte) in codes.iter_mut().enumerate() {
            // Adding zero takes the sign off -0, as there, and changes nothing else.
            let even = e2m1::encode_rne(values[2 * i] / divisor + 0.0);
            let odd = e2m1::encode_rne(values[2 * i + 1] / divisor + 0.0);
            *byte = even | odd << 4;
        }
    }
}
