//! What kernels that go through tensors element by element share: results, widths, grids.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// A dense tensor without values on the device of another one.
pub(super) fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, shape.into(), dtype)
}

/// The longest vector of at most 16 bytes that divides `len` and suits where each tensor starts.
pub(super) fn vector_width<R: CubeRuntime>(len: usize, tensors: &[&CubeTensor<R>]) -> usize {
    let fits = |width: usize| {
        let aligned = |tensor: &&CubeTensor<R>| {
            let bytes = (width * tensor.dtype.size()) as u64;
            bytes <= 16
                && tensor
                    .handle
                    .offset_start
                    .unwrap_or(0)
                    .is_multiple_of(bytes)
        };
        len.is_multiple_of(width) && tensors.iter().all(aligned)
    };
    // Four is the most that all backends take.
    [4, 2].into_iter().find(|width| fits(*width)).unwrap_or(1)
}

/// A grid with one unit for each of `units` pieces of work, and a few more.
pub(super) fn grid<R: CubeRuntime>(like: &CubeTensor<R>, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(&like.client, units);
    let count = calculate_cube_count_elemwise(&like.client, units, dim);
    (count, dim)
}
