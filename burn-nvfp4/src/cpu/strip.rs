//! A piece of an operand small enough for the cache, in the packed orientation.
//!
//! Loading is the only step that knows the element type and the contraction axis: afterwards every
//! format works on the same f32 rows, contraction axis last, zero-padded to whole blocks.
//! Contraction over the view's rows transposes here, a strip at a time, so that no transposed copy
//! ever exists.

use multiversion::multiversion;

use super::element::{Contraction, Element, MatrixView};
use super::hadamard::{hadamard, random_hadamard};
use crate::format::layout::BlockDims;
use crate::recipe::{SignVector, Transform};
use crate::rng::RandomKey;

/// Elements that are encoded together, and that share one encode scale in every format.
pub(super) const GROUP: usize = 16;

/// Operands with fewer elements are worked on by the calling thread alone.
pub(super) const PARALLEL_FROM: usize = 1 << 16;

/// The transform of an operand, signs included.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rotation {
    None,
    Fixed(SignVector),
    Random([u32; 4]),
}

impl Rotation {
    pub(super) const fn new(transform: Transform, key: &RandomKey) -> Self {
        match transform {
            Transform::None => Self::None,
            Transform::Hadamard { signs } => Self::Fixed(signs),
            Transform::RandomHadamard => Self::Random(key.signs()),
        }
    }
}

/// How an operand is cut into strips.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Rows of the packed operand.
    pub(super) rows: usize,
    /// Its contraction length, without padding.
    pub(super) k: usize,
    /// Rows of a strip, whole blocks.
    pub(super) height: usize,
    /// Elements of a strip along the contraction axis, whole blocks and whole groups.
    pub(super) width: usize,
    /// Rows and length of a block; a format without blocks has blocks of one group.
    pub(super) block: BlockDims,
    /// What the length of a strip is a multiple of: whole blocks, whole transformed vectors.
    unit: usize,
}

impl Grid {
    /// Strips of about 4096 elements, shaped for the side from which they are read: rows of 1 KiB
    /// where `k` is contiguous, squares where it is not.
    pub(super) fn new(
        (rows, k): (usize, usize),
        along: Contraction,
        block: BlockDims,
        transform: Transform,
    ) -> Self {
        let block = BlockDims {
            rows: block.rows,
            k: block.k.max(GROUP),
        };
        let (height, width) = match along {
            Contraction::Columns => (16, 256),
            Contraction::Rows => (64, 64),
        };
        Self {
            rows,
            k,
            height: block.rows.max(height),
            width: block.k.max(width).max(transform.points()),
            unit: block.k.max(transform.points()),
            block,
        }
    }

    /// The windows of the strips that start at `row`, along the contraction axis.
    pub(super) fn windows(self, row: usize) -> impl Iterator<Item = Window> {
        let rows = self.height.min(self.rows - row);
        (0..self.k).step_by(self.width).map(move |k| {
            let filled = self.width.min(self.k - k);
            let width = filled.next_multiple_of(self.unit);
            Window {
                row,
                rows,
                k,
                filled,
                width,
            }
        })
    }
}

/// Which part of the packed operand a strip covers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    /// First row.
    pub(super) row: usize,
    /// Rows that exist.
    pub(super) rows: usize,
    /// First element along the contraction axis.
    pub(super) k: usize,
    /// Elements along the contraction axis that exist.
    pub(super) filled: usize,
    /// `filled`, padded to whole blocks and whole transformed vectors.
    pub(super) width: usize,
}

impl Window {
    /// Groups in a row of the strip.
    pub(super) const fn groups(&self) -> usize {
        self.width / GROUP
    }
}

/// Working memory of one strip; reused from strip to strip.
#[derive(Debug, Default)]
pub(super) struct Strip {
    pub(super) window: Window,
    /// `[rows, width]`, zero-padded along the contraction axis.
    pub(super) values: Vec<f32>,
    /// `[rows, width]`, one code per byte.
    pub(super) codes: Vec<u8>,
    /// `[rows of blocks, groups]`: block amax, repeated for each group of a block.
    pub(super) amax: Vec<f32>,
    /// `[rows of blocks, groups]`: what elements are multiplied with before they are rounded.
    pub(super) encode: Vec<f32>,
    /// `[rows of blocks, groups]`: the decode scale of the block, in f32.
    pub(super) decode: Vec<f32>,
    /// `[rows of blocks, groups]`: the decode scale as it is stored, in the one-byte formats.
    pub(super) bytes: Vec<u8>,
}

impl Strip {
    /// Reads a window of the operand and transforms it.
    pub(super) fn load<E: Element>(
        &mut self,
        x: &MatrixView<'_, E>,
        along: Contraction,
        rotation: Rotation,
        window: Window,
    ) {
        self.window = window;
        let len = window.rows * window.width;
        if window.filled < window.width {
            self.values.clear();
        }
        self.values.resize(len, 0.0);
        match along {
            Contraction::Columns => load_rows(x.data(), x.cols(), window, &mut self.values),
            Contraction::Rows => load_columns(x.data(), x.cols(), window, &mut self.values),
        }
        match rotation {
            Rotation::None => {}
            Rotation::Fixed(signs) => hadamard(&mut self.values, signs),
            Rotation::Random(signs) => random_hadamard(&mut self.values, signs),
        }
    }
}

/// The rows of a strip are rows of the view.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
fn load_rows<E: Element>(data: &[E], stride: usize, window: Window, values: &mut [f32]) {
    for (row, out) in values.chunks_exact_mut(window.width).enumerate() {
        let start = (window.row + row) * stride + window.k;
        let source = &data[start..start + window.filled];
        for (value, element) in out.iter_mut().zip(source) {
            *value = element.to_f32();
        }
    }
}

/// The rows of a strip are columns of the view.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl+avx512dq", "x86_64+avx2"))]
fn load_columns<E: Element>(data: &[E], stride: usize, window: Window, values: &mut [f32]) {
    for k in 0..window.filled {
        let start = (window.k + k) * stride + window.row;
        let source = &data[start..start + window.rows];
        for (out, element) in values.chunks_exact_mut(window.width).zip(source) {
            out[k] = element.to_f32();
        }
    }
}
