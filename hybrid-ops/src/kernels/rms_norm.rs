//! RMSNorm over the last axis: see [`super::norm`].

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use super::norm::{self, Norm};

fn of<'a, R: CubeRuntime>(
    x: &'a CubeTensor<R>,
    weight: &'a CubeTensor<R>,
    eps: f64,
) -> Norm<'a, R> {
    Norm {
        x,
        z: None,
        weight,
        segments: 1,
        eps: single(eps),
    }
}

/// eps as the kernels add it.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is what is wanted"
)]
pub(super) fn single(eps: f64) -> f32 {
    eps as f32
}

/// `[x, weight]` to `[y, rstd]`, `y` in dtype `output` and `rstd` f32 `[rows, 1]`.
pub(super) fn forward<R: CubeRuntime>(
    [x, weight]: [CubeTensor<R>; 2],
    eps: f64,
    output: DType,
) -> Vec<CubeTensor<R>> {
    let (y, rstd) = norm::forward(&of(&x, &weight, eps), output);
    vec![y, rstd]
}

/// `[x, weight, rstd, dy]` to `[dx, dweight]` in the dtypes of `x` and `weight`.
pub(super) fn backward<R: CubeRuntime>(
    [x, weight, rstd, dy]: [CubeTensor<R>; 4],
    eps: f64,
) -> Vec<CubeTensor<R>> {
    let (dx, dweight) = norm::backward(&of(&x, &weight, eps), &rstd, &dy, None, weight.dtype);
    vec![dx, dweight]
}
