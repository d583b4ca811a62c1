//! The Mamba-2 mixer.
//!
//! 1. `z, x B C, dt = split(in_proj(u))`, in this order.
//! 2. `x B C = silu(causal_conv(x B C))`; z and dt do not pass the convolution.
//! 3. `dt = clamp(softplus(dt + dt_bias))`, `A = -exp(a_log)`, both in f32.
//! 4. The recurrence ([`super::ssd`]), including the skip `D x`.
//! 5. `out_proj(group_norm(y * silu(z)))`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_hybrid_ops::op::MixerShape;
use burn_hybrid_ops::ops::MixerParams;
use burn_hybrid_ops::{HybridEngine, ops};

use super::activation::{silu, softplus};
use super::conv::CausalConv1d;
use super::linear::Linear;
use super::norm::GatedGroupNorm;
use super::pass::Pass;
use super::source::ParamSource;
use super::ssd::{SsdInputs, ssd, step};
use super::{dense, wide};
use crate::config::{DtLimit, HybridConfig};

/// The Mamba-2 mixer.
#[derive(Module, Debug)]
pub struct Mamba2<B: Backend> {
    /// `d_model -> z, x, B, C, dt`.
    pub in_proj: Linear<B>,
    /// Over x, B and C.
    pub conv1d: CausalConv1d<B>,
    /// `[heads]`, f32.
    pub dt_bias: Param<Tensor<B, 1>>,
    /// `[heads]`, f32: `A = -exp(a_log)`.
    pub a_log: Param<Tensor<B, 1>>,
    /// `[heads]`, f32.
    pub d_skip: Param<Tensor<B, 1>>,
    /// Gate and norm over groups of `d_inner / n_groups` channels.
    pub norm: GatedGroupNorm<B>,
    /// `d_inner -> d_model`.
    pub out_proj: Linear<B>,
    n_heads: usize,
    head_dim: usize,
    n_groups: usize,
    d_state: usize,
    chunk_len: usize,
    /// Bounds of dt; replaceable because nothing learned depends on them.
    #[module(skip)]
    pub(crate) dt_limit: DtLimit,
}

/// What a Mamba-2 block remembers of the tokens it has seen.
#[derive(Clone, Debug)]
pub struct Mamba2State<B: Backend> {
    /// Last inputs of the convolution, oldest first: `[batch, taps - 1, conv_dim]`.
    pub window: Tensor<B, 3>,
    /// State of the recurrence, f32: `[batch, heads, head_dim, d_state]`.
    pub ssm: Tensor<B, 4>,
}

impl<B: Backend> Mamba2State<B> {
    /// The same for each of `rows` sequences, of the state of one.
    ///
    /// # Panics
    /// If the state is of several sequences.
    pub fn repeated(&self, rows: usize) -> Self {
        assert_eq!(
            self.ssm.dims()[0],
            1,
            "only the state of one sequence can be repeated"
        );
        Self {
            window: self.window.clone().repeat_dim(0, rows),
            ssm: self.ssm.clone().repeat_dim(0, rows),
        }
    }
}

impl<B: Backend> Mamba2<B> {
    /// Takes the parameters below `{name}.`.
    pub fn new(source: &mut ParamSource<'_, B>, name: &str, config: &HybridConfig) -> Self {
        Self {
            in_proj: Linear::new(source, &format!("{name}.in_proj")),
            conv1d: CausalConv1d::new(source, &format!("{name}.conv1d")),
            dt_bias: source.take(&format!("{name}.dt_bias")),
            a_log: source.take(&format!("{name}.a_log")),
            d_skip: source.take(&format!("{name}.d_skip")),
            norm: GatedGroupNorm::new(
                source,
                &format!("{name}.norm"),
                config.n_groups,
                config.norm_eps,
            ),
            out_proj: Linear::new(source, &format!("{name}.out_proj")),
            n_heads: config.n_mamba_heads,
            head_dim: config.mamba_head_dim,
            n_groups: config.n_groups,
            d_state: config.d_state,
            chunk_len: config.chunk_len,
            dt_limit: config.dt_limit,
        }
    }
}

impl<B: HybridEngine> Mamba2<B> {
    /// Mixes whole sequences. `u`, result: `[batch, seq, d_model]`.
    pub fn forward(&self, u: Tensor<B, 3>, pass: &mut Pass<'_, B>) -> Tensor<B, 3> {
        let projected = self.in_proj.forward(pass.zero_padding(u));
        // The kernel knows no padding and shows nothing on its way.
        let plain = pass.tokens().is_none() && !pass.is_observed();
        let by_kernel = plain
            .then(|| ops::mamba2_mixer(&projected, &self.kernel_params(), self.shape()))
            .flatten();
        let y = by_kernel.unwrap_or_else(|| self.mix(projected, None, pass).0);
        self.out_proj.forward(y)
    }

    /// Mixes tokens that follow those in `state` (none: the sequence starts here); returns the
    /// state after them. `u`, result: `[batch, seq, d_model]`.
    pub fn extend(
        &self,
        u: Tensor<B, 3>,
        state: Option<Mamba2State<B>>,
        pass: &mut Pass<'_, B>,
    ) -> (Tensor<B, 3>, Mamba2State<B>) {
        let projected = self.in_proj.forward(pass.zero_padding(u));
        let (y, state) = self.mix(projected, state, pass);
        (self.out_proj.forward(y), state)
    }

    fn shape(&self) -> MixerShape {
        MixerShape {
            n_heads: self.n_heads,
            head_dim: self.head_dim,
            n_groups: self.n_groups,
            d_state: self.d_state,
            chunk_len: self.chunk_len,
            dt_min: self.dt_limit.min,
            dt_max: self.dt_limit.max,
            norm_eps: self.norm.eps(),
        }
    }

    fn kernel_params(&self) -> MixerParams<B> {
        MixerParams {
            conv_weight: self.conv1d.weight.val(),
            conv_bias: self.conv1d.bias.as_ref().map(Param::val),
            dt_bias: self.dt_bias.val(),
            a_log: self.a_log.val(),
            d_skip: self.d_skip.val(),
            norm_weight: self.norm.weight.val(),
        }
    }

    /// What stands between the projections, from tensor operations.
    fn mix(
        &self,
        projected: Tensor<B, 3>,
        state: Option<Mamba2State<B>>,
        pass: &mut Pass<'_, B>,
    ) -> (Tensor<B, 3>, Mamba2State<B>) {
        let [batch, seq, _] = projected.dims();
        let (heads, width) = (self.n_heads, self.head_dim);
        let (groups, d_state) = (self.n_groups, self.d_state);
        let (d_inner, bc) = (heads * width, groups * d_state);
        let (window, initial) = state.map(|s| (s.window, s.ssm)).unzip();

        pass.observe("in_proj", || projected.clone());
        let z = dense(projected.clone().narrow(2, 0, d_inner));
        // The bias of in_proj writes to padding, which the window of a short row would see.
        let xbc = projected.clone().narrow(2, d_inner, d_inner + 2 * bc);
        let xbc = pass.zero_padding(xbc);
        let dt = projected.narrow(2, 2 * d_inner + 2 * bc, heads);

        let (xbc, window) = self.conv1d.forward(xbc, window);
        // Again, since the bias of the convolution does as well.
        let xbc = pass.zero_padding(silu(xbc));
        pass.observe("conv_silu", || xbc.clone());
        let dt = self.step_size(dt);
        pass.observe("dt", || dt.clone());

        let part = |start, count, width| {
            xbc.clone()
                .narrow(2, start, count * width)
                .reshape([batch, seq, count, width])
        };
        let inputs = SsdInputs {
            x: part(0, heads, width),
            b: part(d_inner, groups, d_state),
            c: part(d_inner + bc, groups, d_state),
            a: self.a_log.val().cast(dt.dtype()).exp().neg(),
            d_skip: self.d_skip.val().cast(dt.dtype()),
            dt,
        };
        let (y, ssm) = match initial {
            // One token costs less without chunks and their masks.
            Some(state) if seq == 1 => step(inputs, state),
            initial => ssd(inputs, self.chunk_len, initial),
        };
        let y = y.reshape([batch, seq, d_inner]);
        pass.observe("scan", || y.clone());
        pass.observe("gate", || z.clone());
        let y = self.norm.forward(y, z, pass.dtype());
        pass.observe("gated_norm", || y.clone());
        (y, Mamba2State { window, ssm })
    }

    /// `clamp(softplus(dt + dt_bias))` in [`wide`]: in bf16 it would be off by up to 3 %.
    fn step_size(&self, dt: Tensor<B, 3>) -> Tensor<B, 3> {
        let dtype = wide(dt.dtype());
        let dt = softplus(dt.cast(dtype) + self.dt_bias.val().cast(dtype).unsqueeze());
        let DtLimit { min, max } = self.dt_limit;
        let dt = if min > 0.0 { dt.clamp_min(min) } else { dt };
        match max {
            Some(max) => dt.clamp_max(max),
            None => dt,
        }
    }
}
