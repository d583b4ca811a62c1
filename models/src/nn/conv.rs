//! Causal depthwise convolution along time, as K shifted multiply-adds.
//!
//! `y[t] = bias + sum_k weight[k] * x[t - (K-1) + k]`: the last tap meets the current token, and
//! before the first token stands the window of an earlier call, or zeros.
//!
//! Not Burn's `conv1d`: its weight gradient for grouped convolutions runs one small convolution
//! per group, and here every channel is a group. The sequences of a batch are laid end to end, each
//! behind its window, so that every tap is one contiguous slice of all of them; rows that mix two
//! sequences come out where the next window stood, and are dropped.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::dense;
use super::source::ParamSource;

/// Causal depthwise convolution.
#[derive(Module, Debug)]
pub struct CausalConv1d<B: Backend> {
    /// `[channels, 1, taps]`, as checkpoints have it.
    pub weight: Param<Tensor<B, 3>>,
    /// `[channels]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> CausalConv1d<B> {
    /// Takes `{name}.weight` and, if there is one, `{name}.bias`.
    pub fn new(source: &mut ParamSource<'_, B>, name: &str) -> Self {
        Self {
            weight: source.take(&format!("{name}.weight")),
            bias: source.take_optional(&format!("{name}.bias")),
        }
    }

    /// Convolves in the dtype of `x`; also returns the window for the tokens that follow.
    ///
    /// # Shapes
    /// `x`, result: `[batch, seq, channels]`; windows: `[batch, taps - 1, channels]`, oldest first.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        window: Option<Tensor<B, 3>>,
    ) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let (dtype, device) = (x.dtype(), x.device());
        let [batch, seq, channels] = x.dims();
        let weight = self.weight.val();
        let taps = weight.dims()[2];
        let window =
            window.unwrap_or_else(|| Tensor::zeros([batch, taps - 1, channels], (&device, dtype)));
        let history = Tensor::cat(vec![window, x], 1); // [batch, taps - 1 + seq, channels]
        let rows = batch * (taps - 1 + seq);
        let end_to_end = history.clone().reshape([rows, channels]);
        let weight = weight
            .cast(dtype)
            .permute([1, 2, 0])
            .reshape([taps, channels]);
        let y = (0..taps)
            .map(|k| {
                let shifted = end_to_end.clone().narrow(0, k, rows - (taps - 1));
                shifted * weight.clone().narrow(0, k, 1)
            })
            .reduce(|sum, term| sum + term)
            .expect("the configuration has at least two taps");
        let y = match &self.bias {
            Some(bias) => y + bias.val().cast(dtype).unsqueeze(),
            None => y,
        };
        let dropped = Tensor::zeros([taps - 1, channels], (&device, dtype));
        let y = Tensor::cat(vec![y, dropped], 0).reshape([batch, taps - 1 + seq, channels]);
        let y = dense(y.narrow(1, 0, seq));
        (y, history.narrow(1, seq, taps - 1))
    }
}
