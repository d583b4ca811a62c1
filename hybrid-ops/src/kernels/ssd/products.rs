//! The matrix products, named by what they compute; each is one call for all chunks.
//!
//! Letters as in the specification: m chunks of all sequences, h heads, g groups, r heads of a
//! group, p head_dim, n d_state, q tokens of a chunk. `[m, h, p, q]` and `[m, g, (r p), q]` are
//! one tensor. Sums are f32, and so are results.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::cpu::Contraction::{self, Columns, Rows};
use burn_nvfp4::kernels::gemm::{Batched, batched};

use super::Call;

/// Which rows of a `[m, h p, _]` tensor make a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) enum Per {
    /// `[m h, p, _]`.
    Head,
    /// `[m g, (r p), _]`.
    Group,
}

/// The channels of each head or group as matrices.
pub(super) fn channels<R: CubeRuntime>(
    call: &Call,
    tensor: &CubeTensor<R>,
    per: Per,
) -> CubeTensor<R> {
    let count = match per {
        Per::Head => call.chunks() * call.plan.heads,
        Per::Group => call.chunks() * call.plan.groups,
    };
    let [chunks, channels, cols] = tensor.meta.shape().dims();
    let CubeTensor {
        client,
        device,
        handle,
        dtype,
        ..
    } = tensor.clone();
    let shape = [count, chunks * channels / count, cols];
    CubeTensor::new_contiguous(client, device, shape.into(), handle, dtype)
}

/// `lhs rhs^T` of matrices with the contraction axis as stated, plus `sums`.
pub(super) fn product<R: CubeRuntime>(
    (lhs, lhs_along): (CubeTensor<R>, Contraction),
    (rhs, rhs_along): (&CubeTensor<R>, Contraction),
    sums: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    batched(Batched {
        lhs,
        lhs_along,
        rhs: rhs.clone(),
        rhs_along,
        accumulate: sums,
        out: DType::F32,
    })
}

/// `C B^T`: `[m g, q, q]`, rows are the tokens that read.
pub(super) fn scores<R: CubeRuntime>(b: &CubeTensor<R>, c: &CubeTensor<R>) -> CubeTensor<R> {
    product((c.clone(), Columns), (b, Columns), None)
}

/// What tokens of a chunk give each other, `(dt x) W^T`: `[m h, p, q]`.
pub(super) fn inside<R: CubeRuntime>(
    call: &Call,
    x_dt: &CubeTensor<R>,
    weights: &CubeTensor<R>,
) -> CubeTensor<R> {
    product(
        (channels(call, x_dt, Per::Head), Columns),
        (weights, Columns),
        None,
    )
}

/// What a chunk adds to states, or to their gradients: channels by tokens times tokens by states,
/// `[m g, (r p), n]`.
pub(super) fn to_states<R: CubeRuntime>(
    call: &Call,
    decayed: &CubeTensor<R>,
    by_state: &CubeTensor<R>,
) -> CubeTensor<R> {
    product(
        (channels(call, decayed, Per::Group), Columns),
        (by_state, Rows),
        None,
    )
}

/// What states, or their gradients, give to the tokens of a chunk: `[m g, (r p), q]`.
pub(super) fn from_states<R: CubeRuntime>(
    call: &Call,
    states: &CubeTensor<R>,
    by_state: &CubeTensor<R>,
) -> CubeTensor<R> {
    product(
        (channels(call, states, Per::Group), Columns),
        (by_state, Columns),
        None,
    )
}

/// dG, `dy[i] . (dt x)[j]`: `[m h, q, q]`.
pub(super) fn pair_grads<R: CubeRuntime>(
    call: &Call,
    dy: &CubeTensor<R>,
    x_dt: &CubeTensor<R>,
) -> CubeTensor<R> {
    let x_dt = channels(call, x_dt, Per::Head);
    product((channels(call, dy, Per::Head), Rows), (&x_dt, Rows), None)
}

/// The gradient of `dt x` as far as the chunk itself reads it, `dy W`: `[m h, p, q]`.
pub(super) fn inside_grads<R: CubeRuntime>(
    call: &Call,
    dy: &CubeTensor<R>,
    weights: &CubeTensor<R>,
) -> CubeTensor<R> {
    product(
        (channels(call, dy, Per::Head), Columns),
        (weights, Rows),
        None,
    )
}

/// The gradient of B or C, `[m g, q, n]`: through the scores (whose axis `along` is summed over) and
/// the other of the two, plus through channels by tokens and the states that they met.
pub(super) fn group_grads<R: CubeRuntime>(
    call: &Call,
    (score_grads, along): (&CubeTensor<R>, Contraction),
    other: &CubeTensor<R>,
    [decayed, states]: [&CubeTensor<R>; 2],
) -> CubeTensor<R> {
    let through_scores = product((score_grads.clone(), along), (other, Rows), None);
    let states = channels(call, states, Per::Group);
    product(
        (channels(call, decayed, Per::Group), Rows),
        (&states, Rows),
        Some(through_scores),
    )
}
