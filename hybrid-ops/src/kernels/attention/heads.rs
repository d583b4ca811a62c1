//! Heads to where a batch of GEMMs wants them, and back.

use burn_backend::Shape;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::kernels::elementwise::{empty, grid, vector_width};

/// Some tokens of `[batch, seq, heads * head_dim]`, as `[groups, heads of a group * rows, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) batch: usize,
    pub(super) seq: usize,
    pub(super) n_heads: usize,
    pub(super) head_dim: usize,
    /// The first token.
    pub(super) start: usize,
    /// Number of tokens.
    pub(super) rows: usize,
    /// Batch times key/value heads.
    pub(super) groups: usize,
}

/// Which side of a move is the tensor with all tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Direction {
    Gather,
    Scatter,
}

/// One vector of a head a unit. Counting heads of the whole batch, `[groups, heads of a group, ..]`
/// is `[batch, heads, ..]`.
#[cube(launch_unchecked)]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel's arguments are its buffers and scalars"
)]
fn move_kernel<I: Float, O: Float, N: Size>(
    from: &Array<Vector<I, N>>,
    to: &mut Array<Vector<O, N>>,
    units: usize,
    seq: usize,
    n_heads: usize,
    vectors: usize,
    start: usize,
    rows: usize,
    #[comptime] direction: Direction,
    #[define(I, O)] _dtypes: [StorageType; 2],
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let vector = ABSOLUTE_POS % vectors;
    let row = ABSOLUTE_POS / vectors % rows;
    let head = ABSOLUTE_POS / vectors / rows;
    let token = head / n_heads * seq + start + row;
    let tokens = (token * n_heads + head % n_heads) * vectors + vector;
    match comptime!(direction) {
        Direction::Gather => {
            to[ABSOLUTE_POS] = Vector::cast_from(from[tokens]);
        }
        Direction::Scatter => {
            to[tokens] = Vector::cast_from(from[ABSOLUTE_POS]);
        }
    }
}

fn launch<R: CubeRuntime>(
    from: &CubeTensor<R>,
    to: &CubeTensor<R>,
    heads: Heads,
    direction: Direction,
) {
    let width = vector_width(heads.head_dim, &[from, to]);
    let vectors = heads.head_dim / width;
    let units = heads.batch * heads.n_heads * heads.rows * vectors;
    let (count, dim) = grid(from, units);
    count_launch();
    // SAFETY: the callers made both buffers for these heads; units beyond them return.
    unsafe {
        move_kernel::launch_unchecked::<R>(
            &from.client,
            count,
            dim,
            width,
            from.clone().into_array_arg(),
            to.clone().into_array_arg(),
            units,
            heads.seq,
            heads.n_heads,
            vectors,
            heads.start,
            heads.rows,
            direction,
            [from.dtype.into(), to.dtype.into()],
        );
    }
}

/// The heads of some tokens of `[batch, seq, heads * head_dim]`, which is dense.
pub(super) fn gather<R: CubeRuntime>(from: &CubeTensor<R>, heads: Heads) -> CubeTensor<R> {
    let rows = heads.batch * heads.n_heads * heads.rows / heads.groups;
    let to = empty(
        from,
        Shape::new([heads.groups, rows, heads.head_dim]),
        from.dtype,
    );
    launch(from, &to, heads, Direction::Gather);
    to
}

/// Writes what [`gather`] would read, rounded to the dtype of `to`.
pub(super) fn scatter<R: CubeRuntime>(from: &CubeTensor<R>, heads: Heads, to: &CubeTensor<R>) {
    launch(from, to, heads, Direction::Scatter);
}

#[cube(launch_unchecked)]
fn add_rows_kernel<N: Size>(
    terms: &Array<Vector<f32, N>>,
    sums: &mut Array<Vector<f32, N>>,
    units: usize,
    terms_per_group: usize,
    sums_per_group: usize,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let group = ABSOLUTE_POS / terms_per_group;
    let to = group * sums_per_group + ABSOLUTE_POS % terms_per_group;
    sums[to] += terms[ABSOLUTE_POS];
}

/// Adds `terms [groups, rows, width]` to the first rows of each group of `sums [groups, more, width]`.
pub(super) fn add_rows<R: CubeRuntime>(terms: &CubeTensor<R>, sums: &CubeTensor<R>) {
    let [groups, rows, columns] = terms.meta.shape().dims();
    let [_, more, _]: [usize; 3] = sums.meta.shape().dims();
    let width = vector_width(columns, &[terms, sums]);
    let units = groups * rows * columns / width;
    let (count, dim) = grid(terms, units);
    count_launch();
    // SAFETY: `rows <= more`, as blocks of queries see no more keys than there are; both tensors
    // were made here, dense.
    unsafe {
        add_rows_kernel::launch_unchecked::<R>(
            &terms.client,
            count,
            dim,
            width,
            terms.clone().into_array_arg(),
            sums.clone().into_array_arg(),
            units,
            rows * columns / width,
            more * columns / width,
        );
    }
}
