//! Causal grouped-query attention without positions: `softmax(q k^T / sqrt(d)) v`.
//!
//! GEMMs are the library's; between them stand two kernels over rows of scores ([`rows`]) and one
//! that moves heads to where a batch of GEMMs wants them ([`heads`]). Queries go through in blocks
//! of [`BLOCK`] tokens, and a block sees the keys up to its last token, so that `[seq, seq]` exists
//! for one block of rows at a time and half of the products above the diagonal are never computed.
//! The query heads that share keys are stacked as rows of one product.
//!
//! Per block of r queries, e keys, with B = batch x key/value heads and h = heads / key/value heads:
//! 1. `S [B, h r, e] = Q K^T` in f32; 2. `P = softmax(S / sqrt(d))` under the mask, in the dtype of
//!    the activations, and the logarithm of each row's sum; 3. `O = P V`.
//!
//! Backward computes S and P again from the kept logarithms:
//! `dP = dO V^T`, `dS = P o (dP - rowsum(P o dP)) / sqrt(d)`, `dQ = dS K`, `dK += dS^T Q`,
//! `dV += P^T dO`, the last two summed in f32 over the blocks.

mod heads;
mod rows;

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::cpu::Contraction;
use burn_nvfp4::kernels::gemm::{Batched, batched};

use super::elementwise::empty;
use crate::op::AttentionShape;
use heads::{Heads, add_rows, gather, scatter};
use rows::{RowsOf, softmax, softmax_backward};

/// Queries of a block.
const BLOCK: usize = 512;

/// Batch and length of the tensors at hand, and their heads.
struct Problem {
    shape: AttentionShape,
    batch: usize,
    seq: usize,
}

impl Problem {
    fn new<R: CubeRuntime>(shape: AttentionShape, [q, k, v]: [&CubeTensor<R>; 3]) -> Self {
        let [batch, seq, _] = q.meta.shape().dims();
        let width = |heads| [batch, seq, heads * shape.head_dim];
        let is = |tensor: &CubeTensor<R>, heads, what: &str| {
            let dims: [usize; 3] = tensor.meta.shape().dims();
            assert_eq!(dims, width(heads), "attention: {what} of {shape:?}");
            assert_eq!(tensor.dtype, q.dtype, "attention: dtype of {what}");
        };
        is(q, shape.n_heads, "queries");
        is(k, shape.n_kv_heads, "keys");
        is(v, shape.n_kv_heads, "values");
        Self { shape, batch, seq }
    }

    /// Blocks of queries: first token and first token after it.
    fn blocks(&self) -> impl Iterator<Item = [usize; 2]> + use<> {
        let seq = self.seq;
        (0..seq)
            .step_by(BLOCK)
            .map(move |start| [start, seq.min(start + BLOCK)])
    }

    /// The query heads of some tokens, stacked over the keys that they share.
    fn queries(&self, [start, end]: [usize; 2]) -> Heads {
        self.heads(self.shape.n_heads, [start, end])
    }

    /// The heads of the keys or values up to a token.
    fn keys(&self, end: usize) -> Heads {
        self.heads(self.shape.n_kv_heads, [0, end])
    }

    fn heads(&self, n_heads: usize, [start, end]: [usize; 2]) -> Heads {
        Heads {
            batch: self.batch,
            seq: self.seq,
            n_heads,
            head_dim: self.shape.head_dim,
            start,
            rows: end - start,
            groups: self.batch * self.shape.n_kv_heads,
        }
    }

    fn rows(&self, [start, end]: [usize; 2]) -> RowsOf {
        RowsOf {
            queries: end - start,
            first: start,
            keys: end,
            scale: (self.shape.head_dim as f32).sqrt().recip(),
            // Blocks before this one hold as many rows as they have tokens, for every head.
            before: self.batch * self.shape.n_heads * start,
        }
    }
}

/// `A B^T` of batches, [`Contraction`] naming the summed axis of each.
fn product<R: CubeRuntime>(
    (lhs, lhs_along): (&CubeTensor<R>, Contraction),
    (rhs, rhs_along): (&CubeTensor<R>, Contraction),
    out: DType,
) -> CubeTensor<R> {
    batched(Batched {
        lhs: lhs.clone(),
        lhs_along,
        rhs: rhs.clone(),
        rhs_along,
        accumulate: None,
        out,
    })
}

const LAST: Contraction = Contraction::Columns;
const FIRST: Contraction = Contraction::Rows;

/// `[q, k, v]`, each `[batch, seq, heads * head_dim]`, to the result, like q, and the logarithm of
/// the sum of every row, f32 `[batch * heads * seq]` in the order of the blocks.
pub(super) fn forward<R: CubeRuntime>(
    [q, k, v]: [CubeTensor<R>; 3],
    shape: AttentionShape,
) -> Vec<CubeTensor<R>> {
    let problem = Problem::new(shape, [&q, &k, &v]);
    let [q, k, v] = [q, k, v].map(into_contiguous);
    let dtype = q.dtype;
    let out = empty(&q, q.meta.shape().clone(), dtype);
    let sums = empty(
        &q,
        [problem.batch * shape.n_heads * problem.seq],
        DType::F32,
    );
    for block in problem.blocks() {
        let (queries, keys) = (problem.queries(block), problem.keys(block[1]));
        let (q, k, v) = (gather(&q, queries), gather(&k, keys), gather(&v, keys));
        let scores = product((&q, LAST), (&k, LAST), DType::F32);
        let weights = softmax(scores, &sums, problem.rows(block), dtype);
        let y = product((&weights, LAST), (&v, FIRST), dtype);
        scatter(&y, queries, &out);
    }
    vec![out, sums]
}

/// `[q, k, v, sums, dy]` to the gradients of q, k and v.
pub(super) fn backward<R: CubeRuntime>(
    [q, k, v, sums, dy]: [CubeTensor<R>; 5],
    shape: AttentionShape,
) -> Vec<CubeTensor<R>> {
    let problem = Problem::new(shape, [&q, &k, &v]);
    let [q, k, v, dy] = [q, k, v, dy].map(into_contiguous);
    assert_eq!(
        (dy.meta.shape(), dy.dtype),
        (q.meta.shape(), q.dtype),
        "attention: gradient"
    );
    let dtype = q.dtype;
    let dq = empty(&q, q.meta.shape().clone(), dtype);
    let mut summed: Option<[CubeTensor<R>; 2]> = None;
    // From the last block, which sees all keys: it makes the buffers of the sums.
    let mut blocks: Vec<_> = problem.blocks().collect();
    blocks.reverse();
    for block in blocks {
        let (queries, keys) = (problem.queries(block), problem.keys(block[1]));
        let (q, k, v) = (gather(&q, queries), gather(&k, keys), gather(&v, keys));
        let dy = gather(&dy, queries);
        let scores = product((&q, LAST), (&k, LAST), DType::F32);
        let d_weights = product((&dy, LAST), (&v, LAST), DType::F32);
        let [weights, d_scores] =
            softmax_backward([scores, d_weights], &sums, problem.rows(block), dtype);
        scatter(
            &product((&d_scores, LAST), (&k, FIRST), dtype),
            queries,
            &dq,
        );
        let dk = product((&d_scores, FIRST), (&q, FIRST), DType::F32);
        let dv = product((&weights, FIRST), (&dy, FIRST), DType::F32);
        match &summed {
            None => summed = Some([dk, dv]),
            Some([all_k, all_v]) => {
                add_rows(&dk, all_k);
                add_rows(&dv, all_v);
            }
        }
    }
    let all = problem.keys(problem.seq);
    let [dk, dv] = summed.expect("a sequence has a block").map(|sum| {
        let grad = empty(&k, k.meta.shape().clone(), dtype);
        scatter(&sum, all, &grad);
        grad
    });
    vec![dq, dk, dv]
}
