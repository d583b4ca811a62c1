//! What the kernels are compiled for, and how work is cut into cubes.

use cubecl::prelude::*;

use super::shape::SsdShape;

/// Elements that a unit loads and stores at once; lengths are multiples of it.
pub(super) const WIDTH: usize = 4;
/// Units of most cubes.
pub(super) const UNITS: usize = 256;
/// Channels that go through shared memory together where a tile is transposed.
pub(super) const TILE_CHANNELS: usize = 64;
/// Heads of a cube in kernels that walk along the tokens of a chunk.
pub(super) const WALK_HEADS: usize = 32;
/// Parts of a chunk that such a kernel walks at the same time.
pub(super) const SEGMENTS: usize = UNITS / WALK_HEADS;
/// The longest chunk: scores grow with it, chunk states shrink; they are equal at `sqrt(p n)`, 90
/// to 143 for the models that exist.
const MOST_TOKENS: usize = 128;
/// The shortest chunk: matrix products want rows of 16 bytes.
const FEWEST_TOKENS: usize = 16;

/// Lengths that a model does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) groups: usize,
    pub(super) d_state: usize,
    /// Tokens of a chunk, a power of two.
    pub(super) tokens: usize,
}

impl Plan {
    pub(super) fn new(shape: &SsdShape) -> Self {
        let wanted = shape.chunk_len.min(shape.seq).next_power_of_two();
        Self {
            heads: shape.heads,
            head_dim: shape.head_dim,
            groups: shape.groups,
            d_state: shape.d_state,
            tokens: wanted.clamp(FEWEST_TOKENS, MOST_TOKENS),
        }
    }

    /// Columns of x.
    pub(super) const fn channels(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of B, and of C.
    pub(super) const fn group_states(&self) -> usize {
        self.groups * self.d_state
    }

    /// Columns of x, B and C together.
    pub(super) const fn columns(&self) -> usize {
        self.channels() + 2 * self.group_states()
    }

    /// Heads that share B and C.
    pub(super) const fn group_heads(&self) -> usize {
        self.heads / self.groups
    }

    /// Elements of the states of all heads.
    pub(super) const fn states(&self) -> usize {
        self.channels() * self.d_state
    }

    /// Tokens of a transposed tile.
    pub(super) const fn tile_tokens(&self) -> usize {
        if self.tokens < 64 { self.tokens } else { 64 }
    }

    /// Rows of a tile of scores, and tokens of a tile of [`super::gradients`].
    pub(super) const fn tile_rows(&self) -> usize {
        if self.tokens < 32 { self.tokens } else { 32 }
    }

    /// Tiles along the tokens of a chunk, of [`tile_rows`](Self::tile_rows).
    pub(super) const fn row_tiles(&self) -> usize {
        self.tokens / self.tile_rows()
    }
}

/// Lengths that change from call to call.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Extent {
    /// Tokens of a sequence.
    pub(super) seq: usize,
    /// Chunks of a sequence, the last one padded.
    pub(super) chunks: usize,
}
