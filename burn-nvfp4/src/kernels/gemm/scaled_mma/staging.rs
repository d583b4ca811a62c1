//! Codes and scales on their way from global memory through shared memory into registers.
//!
//! A stage holds, of each operand, the words of its tile row by row and one word of four scales for
//! every row and step of 64. What lies outside the matrix is zero. Codes travel in one of two ways:
//! asynchronously (`cp.async`, which also writes the zeros), or through registers that are filled
//! before the MMAs of the current stage and emptied after them. Scales are an eighth of the bytes
//! and may have to be gathered byte by byte; they always take registers.

use cubecl::prelude::barrier::copy_async_checked;
use cubecl::prelude::*;

use super::layout::WORDS;
use crate::format::BlockShape;

/// How codes reach shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Copies {
    /// `cp.async` of this many words; rows begin at multiples of it.
    Async {
        /// 2 or 4.
        words: u32,
    },
    /// Loads and stores.
    Registers,
}

/// What an element of the array of scales is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ScaleElements {
    /// One scale.
    One,
    /// Four neighbours along `k`, as the MMA takes them.
    Four,
}

/// What is known of an operand at compile time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Side {
    /// Rows of the tile.
    pub(crate) tile_rows: u32,
    /// Steps of 64 in a stage.
    pub(crate) k_steps: u32,
    /// Units that share the work.
    pub(crate) units: u32,
    /// Which elements share a scale.
    pub(crate) block: BlockShape,
    /// How scales are stored.
    pub(crate) scales: ScaleElements,
}

impl Side {
    /// Words of codes in one row of a stage.
    pub(crate) const fn row_words(&self) -> u32 {
        self.k_steps * WORDS
    }

    /// Words of codes in a stage.
    pub(crate) const fn stage_words(&self) -> u32 {
        self.tile_rows * self.row_words()
    }

    /// Words of scales in a stage.
    pub(crate) const fn stage_scales(&self) -> u32 {
        self.tile_rows * self.k_steps
    }

    /// Words of codes that one unit carries.
    pub(crate) const fn unit_words(&self) -> u32 {
        self.stage_words().div_ceil(self.units)
    }

    /// Words of scales that one unit carries.
    pub(crate) const fn unit_scales(&self) -> u32 {
        self.stage_scales().div_ceil(self.units)
    }

    /// Rows that share a scale.
    pub(crate) const fn block_rows(&self) -> u32 {
        match self.block {
            BlockShape::Row16 => 1,
            BlockShape::Tile16x16 => 16,
        }
    }
}

/// One operand of a cube: the matrix, and the stages of its tile.
#[derive(CubeType)]
pub(crate) struct Operand<S: Int> {
    pub(crate) codes: Slice<u32>,
    pub(crate) scales: Slice<S>,
    /// First row of the tile.
    pub(crate) first: u32,
    /// Rows of the matrix.
    pub(crate) rows: u32,
    /// Blocks of 16 in a row of the matrix, as stored.
    pub(crate) row_blocks: u32,
    /// Blocks of 16 that are multiplied.
    pub(crate) k_blocks: u32,
    pub(crate) staged_codes: SharedMemory<u32>,
    pub(crate) staged_scales: SharedMemory<u32>,
    /// What a unit carries between the fetch and the store of a tile.
    pub(crate) carried_codes: Array<u32>,
    pub(crate) carried_scales: Array<u32>,
    #[cube(comptime)]
    pub(crate) side: Side,
}

/// Where word `word` of row `row` lies in a stage of rows of `row_words`.
///
/// A lane group reads eight rows at once, four neighbouring words of each. Quadruples of words
/// change places within a row, by an XOR with the row, such that those eight quadruples fall into
/// the eight different quarters of the 32 banks.
#[cube]
pub(crate) fn staged_word(row: u32, word: u32, #[comptime] row_words: u32) -> u32 {
    let quadruples = comptime!(row_words / 4);
    let quadruple = (word / 4) ^ ((row / comptime!(8 / quadruples)) % quadruples);
    row * row_words + quadruple * 4 + word % 4
}

#[cube]
impl<S: Int> Operand<S> {
    /// Starts the copies of tile `tile` of codes into stage `stage`.
    pub(crate) fn copy_codes(&mut self, tile: u32, stage: u32, #[comptime] words: u32) {
        let side = comptime!(self.side);
        let row_chunks = comptime!(side.row_words() / words);
        let chunks = comptime!(side.stage_words() / words);
        #[unroll]
        for i in 0..comptime!(chunks.div_ceil(side.units)) {
            let chunk = UNIT_POS + i * side.units;
            let row = chunk / row_chunks;
            let word = (chunk % row_chunks) * words;
            let column = tile * side.row_words() + word;
            let inside = self.first + row < self.rows && column < self.k_blocks * 2;
            let from = (self.first + row) * self.row_blocks * 2 + column;
            // Nothing is read where the length is zero, but the address must be a valid one.
            let from = select(inside, from, 0);
            let len = select(inside, words, 0);
            let to = stage * side.stage_words() + staged_word(row, word, side.row_words());
            let source = self.codes.slice(from as usize, (from + len) as usize);
            let mut target = self
                .staged_codes
                .slice_mut(to as usize, (to + words) as usize);
            copy_async_checked(&source, &mut target, words);
        }
    }

    /// Reads this unit's words of tile `tile`.
    pub(crate) fn fetch_codes(&mut self, tile: u32) {
        let side = comptime!(self.side);
        #[unroll]
        for i in 0..side.unit_words() {
            let at = UNIT_POS + i * side.units;
            let row = at / side.row_words();
            let column = tile * side.row_words() + at % side.row_words();
            let mut word = 0u32;
            if self.first + row < self.rows && column < self.k_blocks * 2 {
                let from = (self.first + row) * self.row_blocks * 2 + column;
                word = self.codes[from as usize];
            }
            self.carried_codes[i as usize] = word;
        }
    }

    /// Puts them into stage `stage`.
    pub(crate) fn store_codes(&mut self, stage: u32) {
        let side = comptime!(self.side);
        #[unroll]
        for i in 0..side.unit_words() {
            let at = UNIT_POS + i * side.units;
            let row = at / side.row_words();
            let to = staged_word(row, at % side.row_words(), side.row_words());
            self.staged_codes[(stage * side.stage_words() + to) as usize] =
                self.carried_codes[i as usize];
        }
    }

    /// Reads this unit's scales of tile `tile`, four to a word.
    pub(crate) fn fetch_scales(&mut self, tile: u32) {
        let side = comptime!(self.side);
        #[unroll]
        for i in 0..side.unit_scales() {
            let at = UNIT_POS + i * side.units;
            let row = self.first + at / side.k_steps;
            let step = tile * side.k_steps + at % side.k_steps;
            let block = step * 4;
            let mut word = 0u32;
            if at < side.stage_scales() && row < self.rows && block < self.k_blocks {
                let from = (row / side.block_rows()) * self.row_blocks + block;
                match comptime!(side.scales) {
                    ScaleElements::Four => {
                        word = u32::cast_from(self.scales[(from / 4) as usize]);
                    }
                    ScaleElements::One =>
                    {
                        #[unroll]
                        for byte in 0..4u32 {
                            if block + byte < self.k_blocks {
                                let scale = self.scales[(from + byte) as usize];
                                word |= u32::cast_from(scale) << (byte * 8);
                            }
                        }
                    }
                }
            }
            self.carried_scales[i as usize] = word;
        }
    }

    /// Puts them into stage `stage`.
    pub(crate) fn store_scales(&mut self, stage: u32) {
        let side = comptime!(self.side);
        #[unroll]
        for i in 0..side.unit_scales() {
            let at = UNIT_POS + i * side.units;
            if at < side.stage_scales() {
                let to = (at % side.k_steps) * side.tile_rows + at / side.k_steps;
                self.staged_scales[(stage * side.stage_scales() + to) as usize] =
                    self.carried_scales[i as usize];
            }
        }
    }

    /// Word `word` of row `row` of stage `stage`.
    pub(crate) fn word(&self, stage: u32, row: u32, word: u32) -> u32 {
        let side = comptime!(self.side);
        let at = staged_word(row, word, side.row_words());
        self.staged_codes[(stage * side.stage_words() + at) as usize]
    }

    /// The four scales of row `row` at step `step` of stage `stage`.
    pub(crate) fn scale_word(&self, stage: u32, row: u32, step: u32) -> u32 {
        let side = comptime!(self.side);
        let at = stage * side.stage_scales() + step * side.tile_rows + row;
        self.staged_scales[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::gemm::scaled_mma::layout::{LANES, a_row, a_word};

    #[test]
    fn every_word_of_a_stage_has_a_place_of_its_own() {
        for row_words in [8, 16, 32] {
            let mut places: Vec<_> = (0..64)
                .flat_map(|row| (0..row_words).map(move |word| staged_word(row, word, row_words)))
                .collect();
            places.sort_unstable();
            assert!(places.into_iter().eq(0..64 * row_words), "{row_words}");
        }
    }

    #[test]
    fn lanes_read_a_register_from_32_different_banks() {
        for row_words in [8, 16, 32] {
            for (register, step) in (0..4).flat_map(|r| (0..row_words / 8).map(move |s| (r, s))) {
                let mut banks: Vec<_> = (0..LANES)
                    .map(|lane| {
                        let (row, word) = (a_row(lane, register), a_word(lane, register));
                        staged_word(row, step * 8 + word, row_words) % 32
                    })
                    .collect();
                banks.sort_unstable();
                assert!(
                    banks.into_iter().eq(0..32),
                    "{row_words} words, register {register}"
                );
            }
        }
    }

    #[test]
    fn asynchronous_copies_stay_together() {
        for row_words in [8, 16, 32] {
            for (row, word) in (0..16).flat_map(|r| (0..row_words).map(move |w| (r, w))) {
                let quadruple = staged_word(row, word - word % 4, row_words);
                assert_eq!(quadruple % 4, 0);
                assert_eq!(staged_word(row, word, row_words), quadruple + word % 4);
            }
        }
    }
}
