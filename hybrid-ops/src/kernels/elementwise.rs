//! What kernels that go through tensors element by element share: results, widths, grids.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::{empty_device_contiguous_dtype, zeros_client};
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

/// A dense tensor of zeros: burn's own pads the rows of a matrix where the device likes them aligned.
pub(super) fn zeros<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: impl Into<Shape>,
    dtype: DType,
) -> CubeTensor<R> {
    let (client, device, shape) = (like.client.clone(), like.device.clone(), shape.into());
    #[expect(clippy::disallowed_methods, reason = "one row has nothing to pad")]
    let flat = zeros_client(
        client.clone(),
        device.clone(),
        Shape::new([shape.num_elements()]),
        dtype,
    );
    CubeTensor::new_contiguous(client, device, shape, flat.handle, dtype)
}

/// The longest vector of at most 16 bytes that divides `len` and suits where each tensor starts.
pub(super) fn vector_width<R: CubeRuntime>(len: usize, tensors: &[&CubeTensor<R>]) -> usize {
    let width = |tensor: &&CubeTensor<R>| {
        let size = tensor.dtype.size();
        let offset = tensor.handle.offset_start.unwrap_or(0);
        let mut widths = tensor.client.io_optimized_vector_sizes(size);
        widths
            .find(|width| {
                len.is_multiple_of(*width) && offset.is_multiple_of((width * size) as u64)
            })
            .unwrap_or(1)
    };
    // All are powers of two, so the least one suits every tensor.
    tensors.iter().map(width).min().unwrap_or(1)
}

/// A grid with one unit for each of `units` pieces of work, and a few more.
pub(super) fn grid<R: CubeRuntime>(like: &CubeTensor<R>, units: usize) -> (CubeCount, CubeDim) {
    let dim = CubeDim::new(&like.client, units);
    let count = calculate_cube_count_elemwise(&like.client, units, dim);
    (count, dim)
}

/// A tensor that a kernel replaces: the result, in the memory of the tensor if nobody else holds
/// it, and the arguments to read the tensor and to write the result. `position` is that of the
/// tensor among the buffers of the kernel.
pub(super) fn in_place<R: CubeRuntime>(
    tensor: CubeTensor<R>,
    position: usize,
) -> (CubeTensor<R>, ArrayArg<R>, ArrayArg<R>) {
    if tensor.can_mut() {
        let output = tensor.as_tensor_alias(position).into_array_arg();
        return (tensor.clone(), tensor.into_array_arg(), output);
    }
    let result = empty(&tensor, tensor.meta.shape().clone(), tensor.dtype);
    let output = result.clone().into_array_arg();
    (result, tensor.into_array_arg(), output)
}

/// At least `count` cubes, in a grid that every device takes; cubes beyond them return.
pub(super) fn cubes(count: usize) -> CubeCount {
    /// Most cubes along one axis of a grid that WebGPU promises.
    const MOST: usize = 65_535;
    let x = count.clamp(1, MOST);
    let grid = [x, count.div_ceil(x)].map(|axis| u32::try_from(axis).unwrap_or(u32::MAX));
    CubeCount::new_2d(grid[0], grid[1])
}
