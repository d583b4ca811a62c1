//! Groups of sixteen elements along the contraction axis: which unit works on which, and how they
//! are read; the twin of `cpu/strip.rs`.
//!
//! A source is a row-major matrix in device memory. The contraction axis runs along its columns or
//! along its rows, and a source is never transposed: a group along the rows is sixteen loads that
//! neighbouring units make side by side. A cube works on a tile of the source; each unit has one
//! group of it at a time, or two neighbouring ones along the rows, so that loads and stores of
//! 16-bit elements are four bytes wide.

use cubecl::prelude::*;

use super::arithmetic::{Arithmetic, larger};
use super::pairs::{load_pairs, unpack};
use crate::cpu::Contraction;

/// Elements of a group.
pub(super) const GROUP: u32 = 16;

/// A source matrix: runtime arguments.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Geometry {
    pub(super) rows: u32,
    pub(super) cols: u32,
    /// Elements from one row to the next, in vectors of the array that is read along the columns.
    pub(super) stride: u32,
    /// Tiles of a row of tiles, and of a column.
    pub(super) tiles_across: u32,
    pub(super) tiles_down: u32,
}

/// Which tile of the source a cube works on, and how its units share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiling {
    /// Units of a cube.
    pub(super) units: u32,
    /// Rows of a tile.
    pub(super) rows: u32,
    /// Columns of a tile.
    pub(super) cols: u32,
}

/// What the elements of a source are, as far as it saves work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Elements {
    /// They need no rounding to bf16, and are read as `pairs` along the columns.
    Bf16Pairs,
    /// They need no rounding to bf16.
    Bf16,
    /// They do.
    Wider,
}

/// How one job reads its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Access {
    /// The contraction axis of the source.
    pub(super) along: Contraction,
    /// Groups that a unit has at a time: neighbouring columns, hence one along the columns.
    pub(super) width: u32,
    /// The contraction axis is a multiple of sixteen long.
    pub(super) whole: bool,
    pub(super) elements: Elements,
    pub(super) tiling: Tiling,
    pub(super) arithmetic: Arithmetic,
}

impl Access {
    /// Rounds that the units of a cube need for a tile.
    pub(super) const fn rounds(&self) -> u32 {
        let Tiling { units, rows, cols } = self.tiling;
        rows * cols / (GROUP * self.width * units)
    }

    /// Groups of a tile along the contraction axis.
    pub(super) const fn groups(&self) -> u32 {
        match self.along {
            Contraction::Columns => self.tiling.cols / GROUP,
            Contraction::Rows => self.tiling.rows / GROUP,
        }
    }

    /// Neighbouring units that cover sixteen columns.
    pub(super) const fn lane(&self) -> u32 {
        GROUP / self.width
    }

    const fn is_along_columns(&self) -> bool {
        matches!(self.along, Contraction::Columns)
    }
}

/// A comptime index inside a group as u32.
#[expect(
    clippy::cast_possible_truncation,
    reason = "groups of a unit are a few dozen elements"
)]
pub(super) const fn small(index: usize) -> u32 {
    index as u32
}

/// The tiles that a cube takes: its own index, then every so many further on.
///
/// A division by a runtime number costs as much as quantizing three elements, so there are two of
/// them for a cube and none for a tile.
#[derive(CubeType)]
pub(super) struct TileWalk {
    /// Tiles above and to the left of the one that is next.
    pub(super) down: u32,
    pub(super) across: u32,
    /// What lies between two tiles of a cube.
    step_down: u32,
    step_across: u32,
}

/// Where a group is: its first row of the packed operand, and its index along the contraction axis.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub(super) row: u32,
    pub(super) group: u32,
}

/// The walk of this cube, one of `cubes`.
#[cube]
pub(super) fn tile_walk(cubes: u32, geometry: &Geometry) -> TileWalk {
    let first = u32::cast_from(CUBE_POS);
    TileWalk {
        down: first / geometry.tiles_across,
        across: first % geometry.tiles_across,
        step_down: cubes / geometry.tiles_across,
        step_across: cubes % geometry.tiles_across,
    }
}

/// Goes to the next tile.
#[cube]
pub(super) fn advance(walk: &mut TileWalk, geometry: &Geometry) {
    let across = walk.across + walk.step_across;
    let wraps = across >= geometry.tiles_across;
    walk.across = across - select(wraps, geometry.tiles_across, 0u32);
    walk.down += walk.step_down + select(wraps, 1u32, 0u32);
}

/// The group, or the first of its groups, that a unit has in a round on the tile `down` and
/// `across` from the first.
///
/// Along the columns, consecutive units have consecutive groups of a row. Along the rows, units
/// share 16 columns between them, then the groups of the tile along the contraction axis, so that
/// a plane reads whole 32-byte sectors and writes whole sectors of codes.
#[cube]
pub(super) fn place(down: u32, across: u32, round: u32, #[comptime] access: Access) -> Place {
    let row = down * comptime!(access.tiling.rows);
    let col = across * comptime!(access.tiling.cols);
    let slot = UNIT_POS + round * comptime!(access.tiling.units);
    let groups = comptime!(access.groups());
    if comptime!(access.is_along_columns()) {
        Place {
            row: row + slot / groups,
            group: col / GROUP + slot % groups,
        }
    } else {
        let lane = comptime!(access.lane());
        Place {
            row: col + (slot % lane) * comptime!(access.width) + slot / (lane * groups) * GROUP,
            group: row / GROUP + slot / lane % groups,
        }
    }
}

/// Reads the groups of a unit as f32, `values[16 * column + element]`; zeros beyond the source.
#[cube]
pub(super) fn load<F: Float, N: Size>(
    source: &Array<Vector<F, N>>,
    values: &mut Array<f32>,
    place: Place,
    geometry: &Geometry,
    #[comptime] access: Access,
) {
    if comptime!(access.is_along_columns() && access.elements == Elements::Bf16Pairs) {
        unpack(&load_pairs(source, place, geometry, access), values, 0u32);
    } else if comptime!(access.is_along_columns()) {
        load_along_columns(source, values, place, geometry, access);
    } else {
        load_along_rows(source, values, place, geometry, access);
    }
}

#[cube]
fn load_along_columns<F: Float, N: Size>(
    source: &Array<Vector<F, N>>,
    values: &mut Array<f32>,
    place: Place,
    geometry: &Geometry,
    #[comptime] access: Access,
) {
    let n = N::value();
    let col = place.group * GROUP;
    let start = place.row as usize * geometry.stride as usize + (col as usize) / n;
    let row_exists = place.row < geometry.rows;
    #[unroll]
    for v in 0..comptime!(GROUP as usize / n) {
        let exists = if comptime!(access.whole) {
            row_exists && (col < geometry.cols)
        } else {
            row_exists && (col + comptime!(small(v * n)) < geometry.cols)
        };
        // A vector is inside or outside as a whole: its width divides the row.
        let mut vector = Vector::<F, N>::cast_from(F::from_int(0));
        if exists {
            vector = source[start + v];
        }
        #[unroll]
        for i in 0..n {
            values[v * n + i] = f32::cast_from(vector[i]);
        }
    }
}

#[cube]
fn load_along_rows<F: Float, N: Size>(
    source: &Array<Vector<F, N>>,
    values: &mut Array<f32>,
    place: Place,
    geometry: &Geometry,
    #[comptime] access: Access,
) {
    let n = N::value();
    let row = place.group * GROUP;
    let col_exists = place.row < geometry.cols;
    let start = row as usize * geometry.stride as usize + (place.row as usize) / n;
    #[unroll]
    for i in 0..16usize {
        let exists = if comptime!(access.whole) {
            col_exists && (row < geometry.rows)
        } else {
            col_exists && (row + comptime!(small(i)) < geometry.rows)
        };
        let at = start + i * geometry.stride as usize;
        if comptime!(access.elements == Elements::Bf16 && n == 2) {
            // A word, for the reason that `pairs` has.
            let mut word = 0u32;
            if exists {
                word = u32::reinterpret(source[at]);
            }
            values[i] = f32::reinterpret(word << 16u32);
            values[16 + i] = f32::reinterpret(word & 0xFFFF_0000u32);
        } else {
            let mut vector = Vector::<F, N>::cast_from(F::from_int(0));
            if exists {
                vector = source[at];
            }
            #[unroll]
            for w in 0..n {
                values[w * 16 + i] = f32::cast_from(vector[w]);
            }
        }
    }
}

/// `max |x|` of sixteen values, NaN skipped.
#[cube]
pub(super) fn group_amax(
    values: &Array<f32>,
    #[comptime] start: usize,
    #[comptime] arithmetic: Arithmetic,
) -> f32 {
    let mut amax = 0.0f32;
    #[unroll]
    for i in 0..16usize {
        amax = larger(values[start + i], amax, arithmetic);
    }
    amax
}
