//! Operations with kernels, as data: what is computed, and what comes out.
//!
//! An operation takes float tensors, and perhaps integer ones, and makes one differentiable result
//! and perhaps further tensors that its backward needs. A backend that records operations (fusion)
//! and an autodiff node can both work from this alone; only [`crate::kernels`] knows how to
//! compute, and what else it makes. Each variant is described where its function is, in [`crate::ops`].

use burn_backend::{DType, Shape};

/// Shape and dtype of a tensor.
pub type Like = (Shape, DType);

/// Widths of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// Heads of keys and values; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// Widths of a Mamba-2 mixer, and what its formulas take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixerShape {
    /// Heads of the scan.
    pub n_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Groups of heads that share B and C, and of channels that are normalised together.
    pub n_groups: usize,
    /// States of a channel.
    pub d_state: usize,
    /// Tokens of a chunk at most; results depend on it by rounding only.
    pub chunk_len: usize,
    /// Smallest step size; 0: none.
    pub dt_min: f64,
    /// Largest step size.
    pub dt_max: Option<f64>,
    /// Added to mean squares.
    pub norm_eps: f64,
}

impl MixerShape {
    /// Channels of x and z.
    pub const fn d_inner(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Channels of x, B and C, which go through the convolution.
    pub const fn conv_dim(&self) -> usize {
        self.d_inner() + 2 * self.n_groups * self.d_state
    }

    /// Channels of z, x, B, C and dt.
    pub const fn projected(&self) -> usize {
        self.d_inner() + self.conv_dim() + self.n_heads
    }
}

/// Numbers of one AdamW update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f32,
    /// Updates of the parameter, this one included: 1 at the first.
    pub time: i32,
}

/// An operation with a kernel and a backward kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// [`crate::ops::squared_relu`].
    SquaredRelu,
    /// [`crate::ops::rms_norm`]: `[x, weight]`.
    RmsNorm {
        /// Added to the mean square.
        eps: f64,
        /// The dtype of the result.
        output: DType,
    },
    /// [`crate::ops::embedding`]: `[weight]`, and the tokens as integers.
    Embedding {
        /// How many tokens.
        tokens: usize,
        /// Their dtype.
        token_dtype: DType,
        /// The dtype of the result.
        output: DType,
    },
    /// [`crate::ops::cross_entropy`]: `[logits]`, and the targets as integers.
    CrossEntropy,
    /// [`crate::ops::causal_attention`]: `[q, k, v]`.
    CausalAttention(AttentionShape),
    /// [`crate::ops::mamba2_mixer`]: `[projected, conv weight, dt_bias, a_log, d_skip, norm weight]`
    /// and, if there is one, the bias of the convolution.
    Mamba2Mixer(MixerShape),
}

/// Which way an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Inputs: those of the operation. Outputs: the result, then what only backward reads.
    Forward,
    /// Inputs: what was kept ([`Op::keeps`]) in the order of the inputs, what forward made beside
    /// its result, and the gradient of the result. Outputs: the gradients of the float inputs.
    Backward,
}

impl Op {
    /// A name for logs and recorded operations.
    pub const fn name(&self, pass: Pass) -> &'static str {
        match (self, pass) {
            (Self::SquaredRelu, Pass::Forward) => "hybrid::squared_relu",
            (Self::SquaredRelu, Pass::Backward) => "hybrid::squared_relu_backward",
            (Self::RmsNorm { .. }, Pass::Forward) => "hybrid::rms_norm",
            (Self::RmsNorm { .. }, Pass::Backward) => "hybrid::rms_norm_backward",
            (Self::Embedding { .. }, Pass::Forward) => "hybrid::embedding",
            (Self::Embedding { .. }, Pass::Backward) => "hybrid::embedding_backward",
            (Self::CrossEntropy, Pass::Forward) => "hybrid::cross_entropy",
            (Self::CrossEntropy, Pass::Backward) => "hybrid::cross_entropy_backward",
            (Self::CausalAttention(_), Pass::Forward) => "hybrid::causal_attention",
            (Self::CausalAttention(_), Pass::Backward) => "hybrid::causal_attention_backward",
            (Self::Mamba2Mixer(_), Pass::Forward) => "hybrid::mamba2_mixer",
            (Self::Mamba2Mixer(_), Pass::Backward) => "hybrid::mamba2_mixer_backward",
        }
    }

    /// True if backward reads the float input of this index.
    pub const fn keeps(&self, input: usize) -> bool {
        match self {
            // Of the table only its shape and dtype; it lives anyway.
            Self::SquaredRelu | Self::Embedding { .. } => input == 0,
            Self::RmsNorm { .. } => input < 2,
            // The gradient of the logits is made in forward, perhaps in their own memory.
            Self::CrossEntropy => false,
            Self::CausalAttention(_) => input < 3,
            Self::Mamba2Mixer(_) => true,
        }
    }
}
