//! What a step returns to burn-train: a loss and a few numbers, never the logits.
//!
//! burn's `SequenceOutput` copies `[batch, seq, vocab]` logits to the host at every step.

use std::sync::Arc;

use burn::tensor::{Tensor, backend::Backend};
use burn::train::ItemLazy;

use super::gradients::ScalarF32;
use super::layers::OperandFigure;

/// The output of one micro-batch, and what the loop knows about the step.
#[derive(Clone, Debug)]
pub struct LossOutput<B: Backend> {
    /// Mean next-token cross-entropy in nats, `[1]`, still on the device.
    pub loss: Tensor<B, 1>,
    /// How many tokens the mean is over.
    pub tokens: usize,
    /// Filled in by the loop before the output reaches the metrics.
    pub figures: Option<Figures>,
}

/// The numbers of one optimizer step, or of one validation.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Mean cross-entropy in nats per token.
    pub loss: f64,
    /// The same in bits per byte of text.
    pub bits_per_byte: f64,
    /// Global gradient norm before clipping; absent in validation.
    pub grad_norm: Option<f64>,
    /// Training tokens per second since the last step.
    pub tokens_per_second: f64,
    /// Model FLOP utilisation; absent without a peak to compare with.
    pub mfu: Option<f64>,
    /// Steps that did not update the model, so far.
    pub skipped: u64,
    /// Weights that oscillated in the last window; absent before one, or where none are watched.
    pub oscillating: Option<u64>,
    /// What quantization did to the operands of the step, if it was sampled.
    pub operands: Arc<[OperandFigure]>,
    /// Seconds until the last step at the average speed so far.
    pub seconds_left: f64,
}

impl<B: Backend> ItemLazy for LossOutput<B> {
    type ItemSync = Figures;

    fn sync(self) -> Figures {
        self.figures.unwrap_or_else(|| Figures {
            loss: f64::from(self.loss.into_scalar_f32()),
            bits_per_byte: f64::NAN,
            grad_norm: None,
            tokens_per_second: f64::NAN,
            mfu: None,
            skipped: 0,
            oscillating: None,
            operands: Arc::default(),
            seconds_left: f64::NAN,
        })
    }
}

/// Nats per token as bits per byte.
pub fn bits_per_byte(loss: f64, bytes_per_token: f64) -> f64 {
    loss / std::f64::consts::LN_2 / bytes_per_token
}

/// Model FLOP utilisation: the FLOPs that a step needs over those that the device could do.
///
/// Six per parameter and token: two in forward, four in backward, as arXiv:2001.08361 §2.1 counts
/// them. Embeddings are counted although they multiply nothing, attention scores, convolution and
/// scan are not although they do, and recomputation never is.
pub fn flop_utilisation(tokens_per_second: f64, parameters: u64, peak_flops: f64) -> f64 {
    6.0 * parameters as f64 * tokens_per_second / peak_flops
}

#[cfg(test)]
mod tests {
    use super::flop_utilisation;

    #[test]
    fn utilisation_is_six_flops_per_parameter_and_token_of_the_peak() {
        // 849 M parameters at 78 thousand tokens per second on 989 TFLOP/s.
        let mfu = flop_utilisation(78e3, 849_000_000, 989e12);
        assert!((mfu - 0.4018).abs() < 1e-4, "{mfu}");
    }
}
