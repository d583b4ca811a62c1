//! The chunked scan of Mamba-2 (SSD): kernels around batched matrix products.
//!
//! The specification is the composition in the model. Letters (arXiv:2405.21060): b batch, l tokens,
//! c chunks, q tokens per chunk, m = b c, h heads, p head_dim, g groups (heads of a group share B
//! and C), r = h / g, n d_state.
//!
//! Forward:
//! 1. `decay`: the decay along each chunk. `stage`: `dt x`, and the same decayed to the end of its
//!    chunk, turned to `[m, h p, q]`; B and C, cut to `[m g, q, n]`.
//! 2. Inside a chunk: the scores `C B^T`, the weights `W = scores o L`, and `(dt x) W^T`.
//! 3. What each chunk leaves behind; `states`: the recurrence over chunks.
//! 4. What the state before a chunk adds; `outputs`: all parts of y together.
//!
//! Backward keeps the states before each chunk and the decays; everything else is staged again.
//! Gradients flow through 4 to 1: `scores` for pairs of tokens, `states` backwards, then
//! `gradients` and `steps` put together what belongs to x, B and C, and to dt, a and D. Nothing that is
//! added up there cancels by construction: see `scores` and `steps`.
//!
//! Matrix products take operands in the activation dtype; every sum, every decay and the states that
//! are passed along are f32. Sums are made in a fixed order: results are the same in every run.

mod plan;
mod shape;
mod call;
mod decay;
mod stage;
mod scores;
mod states;
mod outputs;
mod gradients;
mod steps;
mod products;

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::cpu::Contraction::{Columns, Rows};

use super::elementwise::empty;
use call::{Call, dense, word};
use decay::Decay;
use gradients::Arriving;
use steps::Found;

pub use shape::{SsdShape, saved_shapes};

/// What forward makes.
#[derive(Clone, Debug)]
pub struct SsdForward<R: CubeRuntime> {
    /// `[batch, seq, heads * head_dim]` in the activation dtype.
    pub y: CubeTensor<R>,
    /// What backward reads beside the inputs: see [`saved_shapes`].
    pub saved: Vec<CubeTensor<R>>,
}

/// The gradients of a scan.
#[derive(Clone, Debug)]
pub struct SsdGrads<R: CubeRuntime> {
    /// Like `xbc`.
    pub dxbc: CubeTensor<R>,
    /// f32 `[batch, seq, heads]`.
    pub ddt: CubeTensor<R>,
    /// f32 `[heads]`.
    pub da_log: CubeTensor<R>,
    /// f32 `[heads]`.
    pub dd_skip: CubeTensor<R>,
}

/// The inputs of a scan.
#[derive(Clone, Debug)]
pub struct SsdInputs<R: CubeRuntime> {
    /// `[batch, seq, heads * head_dim + 2 * groups * d_state]`, columns x, B, C; bf16, f16 or f32.
    pub xbc: CubeTensor<R>,
    /// Discretisation steps, not negative: f32 `[batch, seq, heads]`.
    pub dt: CubeTensor<R>,
    /// Decay rates as `a = -exp(a_log)`: f32 `[heads]`.
    pub a_log: CubeTensor<R>,
    /// Skip weights: f32 `[heads]`.
    pub d_skip: CubeTensor<R>,
}

/// Who runs the stages of a scan: see [`forward_by`].
pub trait Stages {
    /// Runs a stage, once or, to time it, more often; returns what it made.
    fn run<T>(&mut self, name: &'static str, stage: impl Fn() -> T) -> T;
}

/// Runs each stage once.
#[derive(Clone, Copy, Debug)]
pub struct Once;

impl Stages for Once {
    fn run<T>(&mut self, _name: &'static str, stage: impl Fn() -> T) -> T {
        stage()
    }
}

/// Runs the scan from states of zero.
///
/// # Panics
/// If the tensors do not have the lengths of `shape`, or [`SsdShape::check`] fails.
pub fn forward<R: CubeRuntime>(inputs: SsdInputs<R>, shape: &SsdShape) -> SsdForward<R> {
    forward_by(&mut Once, inputs, shape)
}

/// The gradients of all inputs, from what forward saved and the gradient of y.
///
/// # Panics
/// As [`forward`], and if `saved` or `dy` are not of that scan.
pub fn backward<R: CubeRuntime>(
    inputs: SsdInputs<R>,
    saved: Vec<CubeTensor<R>>,
    dy: CubeTensor<R>,
    shape: &SsdShape,
) -> SsdGrads<R> {
    backward_by(&mut Once, inputs, saved, dy, shape)
}

/// As [`forward`], stage by stage.
///
/// # Panics
/// As [`forward`].
pub fn forward_by<R: CubeRuntime>(
    stages: &mut impl Stages,
    inputs: SsdInputs<R>,
    shape: &SsdShape,
) -> SsdForward<R> {
    let call = Call::of(*shape);
    let SsdInputs {
        xbc,
        dt,
        a_log,
        d_skip,
    } = call.take(inputs);
    let activation = xbc.dtype;
    // 1.
    let decay = stages.run("decay", || decay::decay(&call, &dt, &a_log));
    let cum = &decay.cum;
    let x = stages.run("stage x", || stage::inputs(&call, &xbc, &decay));
    let [b, c] = stages.run("stage B, C", || stage::groups(&call, &xbc));
    // 2.
    let scores = stages.run("scores GEMM", || products::scores(&b, &c));
    let weights = stages.run("weights", || {
        scores::weights(&call, &scores, cum, activation)
    });
    drop(scores);
    let inside = stages.run("inside GEMM", || {
        products::inside(&call, &x.plain, &weights)
    });
    drop(weights);
    // 3.
    let left = stages.run("left GEMM", || products::to_states(&call, &x.decayed, &b));
    let before = stages.run("pass states", || {
        states::pass(&call, &left, cum, activation)
    });
    drop((left, x));
    // 4.
    let from_before = stages.run("before GEMM", || products::from_states(&call, &before, &c));
    let y = stages.run("combine", || {
        outputs::combine(&call, &inside, &from_before, cum, [&xbc, &d_skip])
    });
    let Decay { steps, cum } = decay;
    SsdForward {
        y,
        saved: vec![before, steps, cum],
    }
}

/// As [`backward`], stage by stage.
///
/// # Panics
/// As [`backward`].
pub fn backward_by<R: CubeRuntime>(
    stages: &mut impl Stages,
    inputs: SsdInputs<R>,
    saved: Vec<CubeTensor<R>>,
    dy: CubeTensor<R>,
    shape: &SsdShape,
) -> SsdGrads<R> {
    let call = Call::of(*shape);
    let inputs = call.take(inputs);
    let xbc = &inputs.xbc;
    let activation = xbc.dtype;
    let like_y = [shape.batch, shape.seq, shape.channels()];
    let dy = dense("dy", dy, activation, &like_y);
    let [before, steps, cum] = call.take_saved(saved, activation);
    let decay = Decay { steps, cum };
    let cum = &decay.cum;

    let x = stages.run("stage x", || stage::inputs(&call, xbc, &decay));
    let [b, c] = stages.run("stage B, C", || stage::groups(&call, xbc));
    let read = stages.run("stage dy", || stage::gradients(&call, &dy, &decay));
    // Pairs of tokens.
    let scores = stages.run("scores GEMM", || products::scores(&b, &c));
    let pair_grads = stages.run("pairs GEMM", || {
        products::pair_grads(&call, &read.plain, &x.plain)
    });
    let pairs = stages.run("pairs", || {
        scores::pairs(&call, &scores, &pair_grads, cum, activation)
    });
    drop((scores, pair_grads));
    let inside = stages.run("inside GEMM", || {
        products::inside_grads(&call, &read.plain, &pairs.weights)
    });
    // States, from the last chunk to the first.
    let local = stages.run("local GEMM", || {
        products::to_states(&call, &read.decayed, &c)
    });
    let after = stages.run("pass states", || {
        states::pass_back(&call, &local, cum, activation)
    });
    drop(local);
    let carried = stages.run("carried", || states::carried(&call, &before, &after, cum));
    // B and C.
    let dxbc = empty(xbc, xbc.meta.shape().clone(), activation);
    let dc = stages.run("dC GEMMs", || {
        let through = (&pairs.scores, Columns);
        products::group_grads(&call, through, &b, [&read.decayed, &before])
    });
    let db = stages.run("dB GEMMs", || {
        let through = (&pairs.scores, Rows);
        products::group_grads(&call, through, &c, [&x.decayed, &after])
    });
    stages.run("write dB, dC", || {
        gradients::write_groups(&call, &db, &dc, &dxbc);
    });
    drop((db, dc, read, x));
    // x, and then what has one number per token and head.
    let left = stages.run("left GEMM", || products::from_states(&call, &after, &b));
    let from_before = stages.run("before GEMM", || products::from_states(&call, &before, &c));
    let arriving = Arriving {
        inside,
        left,
        before: from_before,
    };
    let sums = stages.run("write dx", || {
        gradients::write_inputs(&call, &inputs, &dy, &decay, &arriving, &dxbc)
    });
    let found = Found {
        pairs: pairs.decays,
        carried,
        sums,
    };
    let [ddt, da_log, dd_skip] = stages.run("steps", || {
        steps::step_grads(&call, &inputs, &decay.steps, &found)
    });
    SsdGrads {
        dxbc,
        ddt,
        da_log,
        dd_skip,
    }
}
