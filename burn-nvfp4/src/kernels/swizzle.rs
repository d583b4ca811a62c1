//! Block scales in the order in which tensor cores read them, on the device: the kernel twin of
//! [`format::swizzle`](crate::format::swizzle).
//!
//! One unit writes the four bytes that one row of a 128x4 tile takes: it finds the row and the
//! columns that its word stands for, and gathers their scales. A 16x16 tile's scale is read by each
//! of its rows. Rows and columns beyond the operand are zeros, as the hardware asks for.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::{DeviceScales, PackedTensor};
use crate::format::swizzle::swizzled_len;

/// Words of a tile of 128 rows by 4 scales.
const TILE_WORDS: usize = 128;

#[cube(launch_unchecked)]
fn swizzle_kernel<S: Int>(
    linear: &Array<S>,
    swizzled: &mut Array<u32>,
    rows: usize,
    cols: usize,
    tile_cols: usize,
    #[comptime] block_rows: usize,
    #[define(S)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= swizzled.len() {
        terminate!();
    }
    let tile = ABSOLUTE_POS / TILE_WORDS;
    let word = ABSOLUTE_POS % TILE_WORDS;
    // Four rows that are 32 apart are neighbours in memory.
    let row = tile / tile_cols * 128 + word % 4 * 32 + word / 4;
    let first = tile % tile_cols * 4;
    let mut bytes = 0u32;
    #[unroll]
    for i in 0..4u32 {
        let col = first + usize::cast_from(i);
        if row < rows && col < cols {
            let scale = u32::cast_from(linear[row / block_rows * cols + col]);
            bytes |= (scale & 255u32) << comptime!(i * 8);
        }
    }
    swizzled[ABSOLUTE_POS] = bytes;
}

/// Swizzles the one-byte block scales of an operand, one for each of its rows, zero-padded to whole
/// tiles; `None` if it has no such scales, or has too many to count.
///
/// # Shapes
/// u32 `[bytes / 4]`; in little-endian memory these are the bytes of
/// [`format::swizzle::swizzle`](crate::format::swizzle::swizzle).
pub fn swizzle_scales<R: CubeRuntime>(operand: &PackedTensor<R>) -> Option<CubeTensor<R>> {
    let scales = match &operand.scales {
        DeviceScales::Bytes(scales) => into_contiguous(scales.clone()),
        DeviceScales::None | DeviceScales::F32(_) => return None,
    };
    let block = operand.format.block_dims();
    let cols = operand.padded_k / block.k;
    let words = swizzled_len(operand.rows, cols)? / 4;
    let client = scales.client.clone();
    let swizzled = empty_device_contiguous_dtype(
        client.clone(),
        scales.device.clone(),
        Shape::new([words]),
        DType::U32,
    );
    if words == 0 {
        return Some(swizzled);
    }
    let dim = CubeDim::new(&client, words);
    let count = calculate_cube_count_elemwise(&client, words, dim);
    let dtype = scales.dtype;
    // SAFETY: units beyond the words return, and a unit reads a scale only where its row and column
    // lie in the operand; `[ceil(rows / block rows), cols]` scales are what a packed operand has.
    unsafe {
        crate::kernels::count_launch();
        swizzle_kernel::launch_unchecked::<R>(
            &client,
            count,
            dim,
            scales.into_array_arg(),
            swizzled.clone().into_array_arg(),
            operand.rows,
            cols,
            cols.div_ceil(4),
            block.rows,
            dtype.into(),
        );
    }
    Some(swizzled)
}
