//! Where the elements of one `m16n8k64` block-scaled MMA lie in the registers of 32 lanes.
//!
//! A is 16x64, B is 64x8, C and D are 16x8; scales are 16x4 and 4x8, one to 16 elements along `k`.
//! A *word* is a register of eight codes that are neighbours along `k`, the first in the lowest
//! bits: word `w` of a row holds `k = 8 w .. 8 w + 7`, so 64 elements are eight words and a block
//! of 16 is two. With `group = lane / 4` and `member = lane % 4`:
//!
//! | operand | a lane has | of |
//! |---|---|---|
//! | A | 4 x 8 codes | row `group` (0, 2) or `group + 8`; word `member` (0, 1) or `member + 4` |
//! | B | 2 x 8 codes | column `group`; word `member` or `member + 4` |
//! | C, D | 4 x f32 | row `group` (0, 1) or `group + 8`; column `2 member` or `2 member + 1` |
//! | scales of A | 4 x E4M3 | row `group` (member 0) or `group + 8` (1); byte `b`: `k = 16 b ..` |
//! | scales of B | 4 x E4M3 | column `group` (member 0); byte `b` likewise |
//!
//! Which members hold scales is what the instruction's selectors say; CubeCL sets `byte-id` and
//! `thread-id` of both operands to 0. The other members' scale registers are not read. Here they
//! hold what their neighbours hold.
//!
//! Each function is Rust and device code at once: the kernel's loader and the tests of this file
//! run the same definition.
//!
//! # Source
//! PTX ISA 9.2 §9.7.14.3 (block scaling, the tables of selectors) and §9.7.14.5 (fragments of
//! `mma.m16n8k64`). CuTe's traits of `SM120_16x8x64_TN_VS` give the same map by strides; the tests
//! hold these functions to both.

use cubecl::prelude::*;

/// Lanes that execute one MMA.
pub(crate) const LANES: u32 = 32;
/// Rows of A and D.
pub(crate) const M: u32 = 16;
/// Columns of B and D.
pub(crate) const N: u32 = 8;
/// Words of eight codes along `k`.
pub(crate) const WORDS: u32 = 8;
/// Registers of A in a lane.
pub(crate) const A_REGISTERS: u32 = 4;
/// Registers of B in a lane.
pub(crate) const B_REGISTERS: u32 = 2;
/// Elements of C and D in a lane.
pub(crate) const D_ELEMENTS: u32 = 4;
/// Blocks of 16 along `k`, one byte of a scale register each.
pub(crate) const BLOCKS: u32 = 4;

/// Row of A that a register holds.
#[cube]
pub(crate) fn a_row(lane: u32, register: u32) -> u32 {
    lane / 4 + (register % 2) * 8
}

/// Word of that row.
#[cube]
pub(crate) fn a_word(lane: u32, register: u32) -> u32 {
    lane % 4 + (register / 2) * 4
}

/// Column of B that a lane's registers hold.
#[cube]
pub(crate) fn b_column(lane: u32) -> u32 {
    lane / 4
}

/// Word of that column.
#[cube]
pub(crate) fn b_word(lane: u32, register: u32) -> u32 {
    lane % 4 + register * 4
}

/// Row of C and D that an accumulator element belongs to.
#[cube]
pub(crate) fn d_row(lane: u32, element: u32) -> u32 {
    lane / 4 + (element / 2) * 8
}

/// Column of C and D that an accumulator element belongs to.
#[cube]
pub(crate) fn d_column(lane: u32, element: u32) -> u32 {
    (lane % 4) * 2 + element % 2
}

/// Row of A whose four scales a lane's register holds.
#[cube]
pub(crate) fn a_scale_row(lane: u32) -> u32 {
    lane / 4 + (lane % 2) * 8
}

/// Column of B whose four scales a lane's register holds.
#[cube]
pub(crate) fn b_scale_column(lane: u32) -> u32 {
    lane / 4
}

/// Lane that holds a word of A: the inverse of [`a_row`] and [`a_word`].
#[cube]
pub(crate) fn a_lane(row: u32, word: u32) -> u32 {
    (row % 8) * 4 + word % 4
}

/// Register that holds a word of A.
#[cube]
pub(crate) fn a_register(row: u32, word: u32) -> u32 {
    row / 8 + (word / 4) * 2
}

/// Lane that holds a word of B: the inverse of [`b_column`] and [`b_word`].
#[cube]
pub(crate) fn b_lane(column: u32, word: u32) -> u32 {
    column * 4 + word % 4
}

/// Register that holds a word of B.
#[cube]
pub(crate) fn b_register(word: u32) -> u32 {
    word / 4
}

/// Lane whose scale register the instruction reads for a row of A, `thread-id-a` being 0.
#[cube]
pub(crate) fn a_scale_lane(row: u32) -> u32 {
    (row % 8) * 4 + row / 8
}

/// Lane whose scale register the instruction reads for a column of B, `thread-id-b` being 0.
#[cube]
pub(crate) fn b_scale_lane(column: u32) -> u32 {
    column * 4
}

#[cfg(test)]
mod tests;
