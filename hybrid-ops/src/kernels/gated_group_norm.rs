//! RMSNorm of `y silu(z)` over each of the groups of channels of a Mamba-2 mixer: see
//! `norm`.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use super::norm::{self, Norm};
use super::rms_norm::single;

/// What is normalised, and by what.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, R: CubeRuntime> {
    /// `[batch, seq, channels]`.
    pub y: &'a CubeTensor<R>,
    /// The gate, of the shape of `y`; may be a slice.
    pub z: &'a CubeTensor<R>,
    /// `[channels]`.
    pub weight: &'a CubeTensor<R>,
    /// Groups of channels, each normalised by itself.
    pub n_groups: usize,
    /// Added to the mean square.
    pub eps: f64,
}

impl<'a, R: CubeRuntime> Inputs<'a, R> {
    fn norm(&self) -> Norm<'a, R> {
        Norm {
            x: self.y,
            z: Some(self.z),
            weight: self.weight,
            segments: self.n_groups,
            eps: single(self.eps),
        }
    }
}

/// The norm in dtype `out`, and `1 / sqrt(mean + eps)` of each group for [`backward`].
///
/// # Shapes
/// Result: that of `y`; f32 `[batch * seq, n_groups]`.
///
/// # Panics
/// If the shapes are not those of [`Inputs`].
pub fn forward<R: CubeRuntime>(
    inputs: &Inputs<'_, R>,
    out: DType,
) -> (CubeTensor<R>, CubeTensor<R>) {
    norm::forward(&inputs.norm(), out)
}

/// The gradients of [`forward`]: of `y` in its dtype, of the weight in f32, and of `z` into `dz`.
///
/// # Shapes
/// `rstd`: from [`forward`]; `dout`: as its result; `dz`: as `z` and of its dtype, may be a slice of
/// a buffer of the caller's.
///
/// # Panics
/// If shapes or dtypes differ from these.
pub fn backward<R: CubeRuntime>(
    inputs: &Inputs<'_, R>,
    rstd: &CubeTensor<R>,
    dout: &CubeTensor<R>,
    dz: &CubeTensor<R>,
) -> (CubeTensor<R>, CubeTensor<R>) {
    norm::backward(&inputs.norm(), rstd, dout, Some(dz), DType::F32)
}
