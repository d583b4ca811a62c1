//! A linear layer that knows its name.
//!
//! `y = x W + b` through Burn's `linear` operation, which is what the NVFP4 decorator intercepts,
//! inside a layer scope, from which the decorator learns which recipe holds.

use burn::module::{Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, module};

use super::source::ParamSource;

/// A linear layer; the weight is in Burn's layout `[d_input, d_output]`.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[d_input, d_output]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[d_output]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Module path, the name that precision policies match.
    #[module(skip)]
    pub name: String,
}

impl<B: Backend> Linear<B> {
    /// Takes `{name}.weight` and, if there is one, `{name}.bias`.
    pub fn new(source: &mut ParamSource<'_, B>, name: &str) -> Self {
        Self {
            weight: source.take(&format!("{name}.weight")),
            bias: source.take_optional(&format!("{name}.bias")),
            name: name.into(),
        }
    }

    /// Multiplies the last axis. The result has the dtype of `x`.
    ///
    /// With activations narrower than the weights (f32 master weights, bf16 activations) the
    /// backend has to accept mixed dtypes in `linear`; NVFP4 does, plain backends do not.
    ///
    /// # Shapes
    /// `x`: `[batch, seq, d_input]`; result: `[batch, seq, d_output]`.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let weight = self.weight.val();
        let bias = self
            .bias
            .as_ref()
            .map(|bias| bias.val().cast(weight.dtype()));
        burn_nvfp4::layer(&self.name, || module::linear(x, weight, bias))
    }
}
