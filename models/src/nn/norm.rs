//! Root-mean-square norms: of the residual stream, and of gated groups after the scan.
//!
//! `y = x / sqrt(mean(x^2) + eps) * weight`, eps inside the root, everything including the
//! product with the weight in f32 and rounded once at the end.
//!
//! The gated norm of Mamba-2 multiplies by `silu(z)` *first* and then normalises each of G
//! contiguous groups of channels by itself; the other order, or one group, is another model.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};
use burn_hybrid_ops::{HybridEngine, ops};

use super::activation::silu;
use super::source::ParamSource;
use super::wide;

/// RMSNorm over the last axis.
#[derive(Module, Debug)]
pub struct RmsNorm<B: Backend> {
    /// `[channels]`.
    pub weight: Param<Tensor<B, 1>>,
    eps: f64,
}

impl<B: Backend> RmsNorm<B> {
    /// Takes `{name}.weight`.
    pub fn new(source: &mut ParamSource<'_, B>, name: &str, eps: f64) -> Self {
        Self {
            weight: source.take(&format!("{name}.weight")),
            eps,
        }
    }
}

impl<B: HybridEngine> RmsNorm<B> {
    /// Normalises `[batch, seq, channels]` over channels; the result has this dtype.
    pub fn forward(&self, x: Tensor<B, 3>, dtype: DType) -> Tensor<B, 3> {
        let weight = self.weight.val();
        if let Some(y) = ops::rms_norm(&x, &weight, self.eps, dtype) {
            return y;
        }
        let compute = wide(x.dtype());
        let y = normalize(x.cast(compute), self.eps);
        (y * weight.cast(compute).unsqueeze()).cast(dtype)
    }
}

/// RMSNorm of `y * silu(z)` over each of `n_groups` contiguous groups of channels.
#[derive(Module, Debug)]
pub struct GatedGroupNorm<B: Backend> {
    /// `[channels]`.
    pub weight: Param<Tensor<B, 1>>,
    n_groups: usize,
    eps: f64,
}

impl<B: Backend> GatedGroupNorm<B> {
    /// Takes `{name}.weight`; `n_groups` divides its length.
    pub fn new(source: &mut ParamSource<'_, B>, name: &str, n_groups: usize, eps: f64) -> Self {
        Self {
            weight: source.take(&format!("{name}.weight")),
            n_groups,
            eps,
        }
    }
}

impl<B: HybridEngine> GatedGroupNorm<B> {
    /// Added to mean squares.
    pub(super) fn eps(&self) -> f64 {
        self.eps
    }

    /// Gates and normalises; the result has this dtype.
    ///
    /// # Shapes
    /// `y`, `z`: `[batch, seq, channels]`.
    pub fn forward(&self, y: Tensor<B, 3>, z: Tensor<B, 3>, dtype: DType) -> Tensor<B, 3> {
        let compute = wide(y.dtype());
        let [batch, seq, channels] = y.dims();
        let gated = y.cast(compute) * silu(z.cast(compute));
        let groups = gated.reshape([batch, seq, self.n_groups, channels / self.n_groups]);
        let y = normalize(groups, self.eps).reshape([batch, seq, channels]);
        (y * self.weight.val().cast(compute).unsqueeze()).cast(dtype)
    }
}

/// `x / sqrt(mean(x^2) + eps)` over the last axis.
fn normalize<B: Backend, const D: usize>(x: Tensor<B, D>, eps: f64) -> Tensor<B, D> {
    let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
    x * (mean_square + eps).powf_scalar(-0.5)
}
