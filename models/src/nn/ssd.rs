//! The state-space recurrence of Mamba-2, in chunks of matrix products (SSD).
//!
//! Per head, with a scalar decay `a < 0` and a state `S` of `[head_dim, d_state]`:
//!
//! ```text
//! S[t] = exp(dt[t] a) S[t-1] + dt[t] x[t] B[t]^T        y[t] = S[t] C[t] + D x[t]
//! ```
//!
//! Letters (arXiv:2405.21060): b batch, l tokens, c chunks, q tokens per chunk, m = b c,
//! h heads, p head_dim, g groups (heads of a group share B and C), r = h / g, n d_state.
//!
//! Steps:
//! 1. Cut l into chunks, zero-padded at the end (dt = 0 neither decays nor writes), time last.
//! 2. Inside a chunk: `y = (L o C B^T)(dt x)`, `L[i, j] = exp(sum of dt a over j < k <= i)`.
//! 3. What each chunk leaves behind: `sum_j exp(decay to the end) B[j] (dt x)[j]`.
//! 4. Between chunks: the same recurrence over chunk states, as one product with a `(c+1)^2`
//!    decay matrix per head; row z is the state before chunk z, the last row is the final state.
//! 5. What the state before a chunk adds: `exp(decay from the start) C[i] S`.
//!
//! B and C are never expanded to heads: products with them run once per group, with the channels
//! of all heads of the group as rows. Time is the last axis of every operand, so heads and
//! channels are adjacent, and regrouping them is a reshape without a copy.
//!
//! `L` is masked *before* `exp`; above the diagonal the exponent is positive and overflows, and
//! `inf * 0` in backward is NaN. Inside a chunk exponents are differences of a cumulative sum,
//! whose rounding is at most one unit of the sum of `|dt a|` over one chunk. Between chunks that
//! sum grows with the sequence, so there `segsum` adds up every segment by itself.
//!
//! Everything is computed in [`wide`], whatever the dtype of x, B and C. The chunk length changes
//! speed, never results beyond rounding.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, Tensor};

use super::wide;

/// The inputs of the recurrence over l tokens. `x`, `b`, `c` come in the activation dtype.
#[derive(Clone, Debug)]
pub struct SsdInputs<B: Backend> {
    /// `[b, l, h, p]`.
    pub x: Tensor<B, 4>,
    /// `[b, l, g, n]`.
    pub b: Tensor<B, 4>,
    /// `[b, l, g, n]`.
    pub c: Tensor<B, 4>,
    /// Discretisation steps, not negative, in [`wide`]: `[b, l, h]`.
    pub dt: Tensor<B, 3>,
    /// Decay rates, negative, in [`wide`]: `[h]`.
    pub a: Tensor<B, 1>,
    /// Skip weights, in [`wide`]: `[h]`.
    pub d_skip: Tensor<B, 1>,
}

/// Runs the recurrence from `initial` (zeros if none) in chunks of `chunk_len` tokens.
///
/// # Shapes
/// Returns `y`: `[b, l, h, p]` and the final state `[b, h, p, n]`, both in [`wide`]; `initial` is
/// like the latter.
pub fn ssd<B: Backend>(
    inputs: SsdInputs<B>,
    chunk_len: usize,
    initial: Option<Tensor<B, 4>>,
) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let SsdInputs {
        x,
        b,
        c,
        dt,
        a,
        d_skip,
    } = inputs;
    let (device, dtype) = (x.device(), wide(x.dtype()));
    let [batch, l, h, p] = x.dims();
    let [_, _, g, n] = b.dims();
    let q = chunk_len.min(l);
    let chunks = l.div_ceil(q);
    let m = batch * chunks;
    let rp = h / g * p;

    // 1. Chunks, time last.
    let x = chunk(x.reshape([batch, l, h * p]).cast(dtype), q).reshape([m, h, p, q]);
    let b = chunk(b.reshape([batch, l, g * n]).cast(dtype), q).reshape([m, g, n, q]);
    let c = chunk(c.reshape([batch, l, g * n]).cast(dtype), q).reshape([m, g, n, q]);
    let dt = chunk(dt, q).reshape([m, h, 1, q]);
    let b = b.swap_dims(2, 3); // [m, g, q, n]

    let decay = (dt.clone() * a.reshape([1, h, 1, 1])).cumsum(3); // [m, h, 1, q]
    let total = decay.clone().narrow(3, q - 1, 1); // [m, h, 1, 1]
    let x_dt = x.clone() * dt;

    // 2. Inside a chunk, transposed: column i is the token that reads, row j the one that wrote.
    let future = lower_triangle(q, &device).reshape([1, 1, q, q]);
    let exponent = decay.clone() - decay.clone().swap_dims(2, 3);
    let exponent = exponent.mask_fill(future.expand([m, h, q, q]), f32::NEG_INFINITY);
    let scores = b.clone().matmul(c.clone()); // [m, g, q, q]
    let weights = scores.reshape([m * g, 1, q, q]) * exponent.exp().reshape([m * g, h / g, q, q]);
    let y_inside = x_dt.clone().matmul(weights.reshape([m, h, q, q])); // [m, h, p, q]

    // 3. What each chunk leaves behind.
    let x_left = x_dt * (total.clone() - decay.clone()).exp();
    let left = x_left.reshape([m, g, rp, q]).matmul(b); // [m, g, r p, n]

    // 4. Between chunks.
    let left = left.reshape([batch, chunks, h, p * n]).swap_dims(1, 2);
    let initial = match initial {
        Some(state) => state.cast(dtype).reshape([batch, h, 1, p * n]),
        None => Tensor::zeros([batch, h, 1, p * n], (&device, dtype)),
    };
    let total = total.reshape([batch, chunks, h]).swap_dims(1, 2);
    let total = Tensor::cat(
        vec![Tensor::zeros([batch, h, 1], (&device, dtype)), total],
        2,
    );
    let states = Tensor::cat(vec![initial, left], 2); // [b, h, c + 1, p n]
    let states = segsum(total).exp().matmul(states);
    let before = states
        .clone()
        .narrow(2, 0, chunks)
        .swap_dims(1, 2)
        .reshape([m, g, rp, n]);
    let last = states.narrow(2, chunks, 1).reshape([batch, h, p, n]);

    // 5. What the state before a chunk adds, and the skip.
    let y_before = before.matmul(c).reshape([m, h, p, q]) * decay.exp();
    let y = y_inside + y_before + x * d_skip.reshape([1, h, 1, 1]);
    let y = y.reshape([batch, chunks, h * p, q]).swap_dims(2, 3);
    let y = y.reshape([batch, chunks * q, h * p]).narrow(1, 0, l);
    (y.reshape([batch, l, h, p]), last)
}

/// One token of the recurrence, written as its definition.
///
/// # Shapes
/// Inputs as in [`ssd`] with l = 1; `state`: `[b, h, p, n]`. Returns `y`: `[b, 1, h, p]` and the
/// new state, in [`wide`].
pub fn step<B: Backend>(inputs: SsdInputs<B>, state: Tensor<B, 4>) -> (Tensor<B, 4>, Tensor<B, 4>) {
    let SsdInputs {
        x,
        b,
        c,
        dt,
        a,
        d_skip,
    } = inputs;
    let dtype = wide(x.dtype());
    let [batch, _, h, p] = x.dims();
    let [_, _, g, n] = b.dims();
    let to_heads = |t: Tensor<B, 4>| {
        let t = t
            .cast(dtype)
            .reshape([batch, g, 1, n])
            .expand([batch, g, h / g, n]);
        t.reshape([batch, h, n])
    };
    let x = x.cast(dtype).reshape([batch, h, p, 1]);
    let dt = dt.reshape([batch, h, 1, 1]);
    let decay = (dt.clone() * a.reshape([1, h, 1, 1])).exp();
    let write = x.clone() * dt * to_heads(b).unsqueeze_dim::<4>(2);
    let state = state.cast(dtype) * decay + write;
    let y = state.clone().matmul(to_heads(c).unsqueeze_dim::<4>(3));
    let y = y + x * d_skip.reshape([1, h, 1, 1]); // [b, h, p, 1]
    (y.reshape([batch, 1, h, p]), state)
}

/// Cuts `[b, l, channels]` into `[b c, channels, q]`, with zeros after the last token.
fn chunk<B: Backend>(x: Tensor<B, 3>, q: usize) -> Tensor<B, 3> {
    let [batch, l, channels] = x.dims();
    let chunks = l.div_ceil(q);
    let missing = chunks * q - l;
    let x = if missing > 0 {
        let zeros = Tensor::zeros([batch, missing, channels], (&x.device(), x.dtype()));
        Tensor::cat(vec![x, zeros], 1)
    } else {
        x
    };
    x.reshape([batch * chunks, q, channels]).swap_dims(1, 2)
}

/// `out[.., i, j]` = sum of `x[.., k]` over `j < k <= i`, and -inf for `j > i`.
///
/// Every segment is added up by itself, so its rounding does not depend on what precedes it.
fn segsum<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 4> {
    let device = x.device();
    let [batch, h, len] = x.dims();
    let shape = [batch, h, len, len];
    // Row k, column j: x[k] where k > j.
    let below = Tensor::<B, 2, Bool>::tril_mask([len, len], -1, &device).expand(shape);
    let terms = x.unsqueeze_dim::<4>(3).expand(shape).mask_fill(below, 0.0);
    let above = Tensor::<B, 2, Bool>::tril_mask([len, len], 0, &device).expand(shape);
    terms.cumsum(2).mask_fill(above, f32::NEG_INFINITY)
}

/// True strictly below the diagonal: row j, column i, with j > i.
fn lower_triangle<B: Backend>(q: usize, device: &B::Device) -> Tensor<B, 2, Bool> {
    // Burn's "triu mask" is false on and above the diagonal.
    Tensor::<B, 2, Bool>::triu_mask([q, q], 0, device)
}
