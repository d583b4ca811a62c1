//! How a GEMM is cut: cubes, lane groups, steps along `k`, stages of shared memory.

use super::layout::{self, LANES};

/// Eight codes to a word of shared memory.
const CODES: u32 = 8;

/// The tile of a cube and how its lane groups share it.
///
/// A lane group is 32 consecutive units of a cube: a plane where planes have 32 units, which the
/// native instruction needs, and a mere range of units elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiling {
    groups: [u32; 2],
    fragments: [u32; 2],
    k_steps: u32,
    stages: u32,
}

impl Tiling {
    /// 128x128 by steps of 128, three stages: for 54 KiB of shared memory.
    ///
    /// Each of the eight lane groups multiplies 64x32 out of registers, so that a word of A that
    /// was read from shared memory serves four MMAs and one of B four.
    pub const LARGE: Self = Self {
        groups: [2, 4],
        fragments: [4, 4],
        k_steps: 2,
        stages: 3,
    };

    /// 128x128 by steps of 64, two stages: 18 KiB, for devices that offer less.
    pub const SHALLOW: Self = Self {
        k_steps: 1,
        stages: 2,
        ..Self::LARGE
    };

    /// 64x64 by steps of 128, three stages: 27 KiB. More cubes, for small matrices.
    pub const SMALL: Self = Self {
        groups: [2, 2],
        fragments: [2, 4],
        ..Self::LARGE
    };

    /// Rows of A and columns of B that one cube multiplies.
    pub const fn tile(&self) -> [u32; 2] {
        [
            self.groups[0] * self.fragments[0] * layout::M,
            self.groups[1] * self.fragments[1] * layout::N,
        ]
    }

    /// Elements along `k` of one stage.
    pub const fn tile_k(&self) -> u32 {
        self.k_steps * layout::WORDS * CODES
    }

    /// Lane groups along the rows of A and along the columns of B.
    pub(crate) const fn groups(&self) -> [u32; 2] {
        self.groups
    }

    /// MMAs of a lane group along the rows of A and along the columns of B.
    pub(crate) const fn fragments(&self) -> [u32; 2] {
        self.fragments
    }

    /// MMAs along `k` in one stage.
    pub(crate) const fn k_steps(&self) -> u32 {
        self.k_steps
    }

    /// Tiles along `k` that shared memory holds at once.
    pub(crate) const fn stages(&self) -> u32 {
        self.stages
    }

    /// Units of a cube.
    pub const fn units(&self) -> u32 {
        self.groups[0] * self.groups[1] * LANES
    }

    /// Words of codes in one row of a stage.
    pub(crate) const fn row_words(&self) -> u32 {
        self.k_steps * layout::WORDS
    }

    /// Bytes of shared memory of the stages, and of the exchange of an emulated MMA.
    pub(crate) const fn shared_bytes(&self, emulated: bool) -> u32 {
        let [rows, columns] = self.tile();
        let stages = self.stages * (rows + columns) * (self.row_words() + self.k_steps);
        let exchange = if emulated {
            self.groups[0] * self.groups[1] * super::multiply::EXCHANGE
        } else {
            0
        };
        4 * (stages + exchange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_and_their_memory_are_what_the_docs_say() {
        let facts = [Tiling::LARGE, Tiling::SHALLOW, Tiling::SMALL]
            .map(|t| (t.tile(), t.tile_k(), t.units(), t.shared_bytes(false)));
        assert_eq!(
            facts,
            [
                ([128, 128], 128, 256, 54 << 10),
                ([128, 128], 64, 256, 18 << 10),
                ([64, 64], 128, 128, 27 << 10),
            ]
        );
    }

    #[test]
    fn small_and_shallow_tilings_fit_32_kib_with_their_emulation() {
        for tiling in [Tiling::SHALLOW, Tiling::SMALL] {
            assert!(tiling.shared_bytes(true) <= 32 << 10, "{tiling:?}");
        }
    }
}
