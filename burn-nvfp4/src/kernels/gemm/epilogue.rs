//! What is left to do after a GEMM that could not do it itself: tensor scales, bias, rounding.
//!
//! One pass over the f32 sums, in the order of [`cpu::Alpha::apply`](crate::cpu::Alpha::apply) and
//! [`cpu::gemm_decoded`](crate::cpu::gemm_decoded): multiply by the scales, add the bias, round to
//! the nearest value of the output's type, ties to even, once. A GPU compiler may fuse the product
//! and the sum into one rounding; the product goes through an integer operation whose outcome it
//! cannot know, so it does not.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

/// What the sums of a GEMM are multiplied with: [`cpu::Alpha`](crate::cpu::Alpha) on a device.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "made and taken apart once per GEMM; a box would cost more"
)]
pub enum Scale<R: CubeRuntime> {
    /// Nothing: the GEMM did it, or there is nothing to do.
    None,
    /// One factor for all, f32 `[1]`.
    Tensor(CubeTensor<R>),
    /// Row scales on at least one side: `out[i][j] = (sum * factor) * (lhs[i] * rhs[j])`.
    Rows {
        /// `f32(1 / (q_max_a * q_max_b))`.
        factor: f32,
        /// Amax of each row of the left operand, `[m]`, or its one amax, `[1]`.
        lhs: CubeTensor<R>,
        /// Amax of each row of the right operand, `[n]`, or its one amax, `[1]`.
        rhs: CubeTensor<R>,
    },
}

/// Which amax of an operand holds for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Amax {
    Tensor,
    Row,
}

/// The part of a [`Scale`] that decides which kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Factors {
    None,
    Tensor,
    Rows { lhs: Amax, rhs: Amax },
}

/// Whether a bias is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Bias {
    None,
    Add,
}

/// `lhs` holds the one factor if the scale is that of a tensor. Buffers that a step does not need
/// are bound all the same and not read.
#[cube(launch_unchecked, address_type = "dynamic")]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel's arguments are its buffers and scalars"
)]
fn finish_kernel<O: Float, N: Size>(
    sums: &Array<Vector<f32, N>>,
    lhs: &Array<f32>,
    rhs: &Array<f32>,
    bias: &Array<f32>,
    out: &mut Array<Vector<O, N>>,
    factor: f32,
    cols: usize,
    zero: u32,
    #[comptime] factors: Factors,
    #[comptime] add: Bias,
    #[define(O)] _dtype: StorageType,
) {
    if ABSOLUTE_POS >= out.len() {
        terminate!();
    }
    let sum = sums[ABSOLUTE_POS];
    let width = sums.vector_size();
    let row = ABSOLUTE_POS * width / cols;
    let col = ABSOLUTE_POS * width % cols;
    let mut rounded = Vector::<O, N>::empty();
    #[unroll]
    for i in 0..width {
        let mut value = sum[i];
        match comptime!(factors) {
            Factors::None => {}
            Factors::Tensor => {
                value *= lhs[0];
            }
            Factors::Rows {
                lhs: lhs_amax,
                rhs: rhs_amax,
            } => {
                let left = match comptime!(lhs_amax) {
                    Amax::Tensor => lhs[0],
                    Amax::Row => lhs[row],
                };
                let right = match comptime!(rhs_amax) {
                    Amax::Tensor => rhs[0],
                    Amax::Row => rhs[col + i],
                };
                value = (value * factor) * (left * right);
            }
        }
        match comptime!(add) {
            Bias::None => {}
            Bias::Add => {
                // `zero` is zero at run time: this keeps product and sum two roundings.
                value = f32::reinterpret(u32::reinterpret(value) ^ zero);
                value += bias[col + i];
            }
        }
        rounded[i] = O::cast_from(value);
    }
    out[ABSOLUTE_POS] = rounded;
}

/// Multiplies the sums of a GEMM by `scale`, adds `bias`, and rounds to `out`.
///
/// Returns `sums` itself where nothing is to be done. Backends whose conversion to f16 may round
/// either way (WGSL) give one of the two neighbours there.
///
/// # Shapes
/// `sums`: f32 `[m, n]`. `bias`: f32 `[n]`. Result: `[m, n]`.
///
/// # Panics
/// If `sums` is not an f32 matrix, or a scale or the bias has another dtype or length.
pub fn finish<R: CubeRuntime>(
    sums: CubeTensor<R>,
    scale: Scale<R>,
    bias: Option<CubeTensor<R>>,
    out: DType,
) -> CubeTensor<R> {
    let [m, n] = sums.meta.shape().dims();
    assert_eq!(sums.dtype, DType::F32, "the sums of a GEMM are f32");
    // A product may come with padded rows.
    let sums = into_contiguous(sums);
    let vector = |name: &str, tensor: CubeTensor<R>, lens: &[usize]| {
        assert_eq!(tensor.dtype, DType::F32, "the {name} of a GEMM is f32");
        let len = tensor.meta.num_elements();
        assert!(
            lens.contains(&len),
            "the {name} of an {m}x{n} GEMM has {len} elements, expected one of {lens:?}"
        );
        into_contiguous(tensor)
    };
    let amax = |tensor: &CubeTensor<R>| match tensor.meta.num_elements() {
        1 => Amax::Tensor,
        _ => Amax::Row,
    };
    let unread = || sums.clone();
    let (factors, factor, lhs, rhs) = match scale {
        Scale::None => (Factors::None, 1.0, unread(), unread()),
        Scale::Tensor(alpha) => {
            let alpha = vector("tensor scale", alpha, &[1]);
            (Factors::Tensor, 1.0, alpha, unread())
        }
        Scale::Rows { factor, lhs, rhs } => {
            let lhs = vector("left row scale", lhs, &[1, m]);
            let rhs = vector("right row scale", rhs, &[1, n]);
            let (left, right) = (amax(&lhs), amax(&rhs));
            let factors = Factors::Rows {
                lhs: left,
                rhs: right,
            };
            (factors, factor, lhs, rhs)
        }
    };
    let (add, bias) = match bias {
        None => (Bias::None, unread()),
        Some(bias) => (Bias::Add, vector("bias", bias, &[n])),
    };
    if (factors, add, out) == (Factors::None, Bias::None, DType::F32) {
        return sums;
    }
    let client = sums.client.clone();
    let finished =
        empty_device_contiguous_dtype(client.clone(), sums.device.clone(), Shape::new([m, n]), out);
    if m * n == 0 {
        return finished;
    }
    let width = vector_width(n, sums.handle.offset_start.unwrap_or(0));
    let units = m * n / width;
    let dim = CubeDim::new(&client, units);
    let count = calculate_cube_count_elemwise(&client, units, dim);
    // SAFETY: units beyond the result return. The width divides `n`, so a vector lies in one row;
    // the lengths of `lhs`, `rhs` and `bias` were checked above against the rows and columns that
    // `factors` and `add` let the kernel read.
    unsafe {
        crate::kernels::count_launch();
        finish_kernel::launch_unchecked::<R>(
            &client,
            count,
            dim,
            sums.required_address_type(),
            width,
            sums.into_array_arg(),
            lhs.into_array_arg(),
            rhs.into_array_arg(),
            bias.into_array_arg(),
            finished.clone().into_array_arg(),
            factor,
            n,
            0,
            factors,
            add,
            out.into(),
        );
    }
    finished
}

/// The longest vector that stays within rows of `n` and on its own alignment, given where in its
/// buffer the tensor starts, in bytes. Four is the most that all backends take.
fn vector_width(n: usize, offset: u64) -> usize {
    match (n % 4, n % 2, offset % 16, offset % 8) {
        (0, _, 0, _) => 4,
        (_, 0, _, 0) => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::vector_width;

    #[test]
    fn vectors_stay_within_a_row_and_aligned() {
        for (n, offset, width) in [
            (4, 0, 4),
            (8, 512, 4),
            (6, 0, 2),
            (7, 0, 1),
            (8, 8, 2),
            (8, 4, 1),
        ] {
            assert_eq!(vector_width(n, offset), width, "n = {n}, offset = {offset}");
        }
    }
}
