//! MLP with squared ReLU and no gate: `down(relu(up(x))^2)`.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_hybrid_ops::{HybridEngine, ops};

use super::activation::squared_relu;
use super::linear::Linear;
use super::source::ParamSource;

/// The MLP mixer.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `d_model -> d_ffn`.
    pub up_proj: Linear<B>,
    /// `d_ffn -> d_model`.
    pub down_proj: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    /// Takes the parameters below `{name}.`.
    pub fn new(source: &mut ParamSource<'_, B>, name: &str) -> Self {
        Self {
            up_proj: Linear::new(source, &format!("{name}.up_proj")),
            down_proj: Linear::new(source, &format!("{name}.down_proj")),
        }
    }
}

impl<B: HybridEngine> Mlp<B> {
    /// `[batch, seq, d_model]` to the same.
    pub fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = self.up_proj.forward(x);
        let x = ops::squared_relu(&x).unwrap_or_else(|| squared_relu(x));
        self.down_proj.forward(x)
    }
}
