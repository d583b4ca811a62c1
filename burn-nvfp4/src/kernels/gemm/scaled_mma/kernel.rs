//! The kernel: a cube multiplies one tile of D.
//!
//! 1. The first stages but one are filled.
//! 2. For each tile along `k`: the copies of the tile that is `stages - 1` ahead begin, in the
//!    stage that the previous tile has left; every lane group multiplies its part of the current
//!    tile; the copies are completed. One barrier of the cube per tile keeps readers and writers of
//!    a stage apart.
//! 3. The sums, in f32 registers until here, are multiplied by `alpha`, `bias` is added, and they
//!    are rounded to the type of D.
//!
//! Cubes run along the rows of A first, so that those that are resident together share the columns
//! of B; packed operands are small enough that A stays in the L2 cache meanwhile.

use cubecl::prelude::barrier::Barrier;
use cubecl::prelude::*;

use super::Mma;
use super::layout::{
    A_REGISTERS, B_REGISTERS, D_ELEMENTS, LANES, M, N, WORDS, a_row, a_scale_row, a_word, b_column,
    b_scale_column, b_word, d_column, d_row,
};
use super::multiply::{EXCHANGE, Fragments, multiply};
use super::staging::{Copies, Operand, Side};
use super::tiling::Tiling;

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    pub(crate) tiling: Tiling,
    pub(crate) mma: Mma,
    pub(crate) copies: Copies,
    pub(crate) lhs: Side,
    pub(crate) rhs: Side,
}

impl Plan {
    /// Accumulators are registers only if every loop over them is unrolled. The emulated MMA is not
    /// worth the code that would be.
    const fn unrolled(&self) -> bool {
        match self.mma {
            Mma::Native => true,
            Mma::Emulated => false,
        }
    }

    const fn staged_codes(&self, side: Side) -> usize {
        (self.tiling.stages() * side.stage_words()) as usize
    }

    const fn staged_scales(&self, side: Side) -> usize {
        (self.tiling.stages() * side.stage_scales()) as usize
    }
}

/// Lengths of a packed operand.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Extent {
    /// Rows of the matrix.
    pub(crate) rows: u32,
    /// Blocks of 16 in a row.
    pub(crate) row_blocks: u32,
}

/// The factor and the vector of step 3.
#[derive(CubeType, CubeLaunch)]
pub(crate) struct Scaling {
    pub(crate) alpha: ComptimeOption<Array<f32>>,
    pub(crate) bias: ComptimeOption<Array<f32>>,
}

/// `D [m, n] = alpha * A B^T + bias`.
#[cube(launch_unchecked)]
#[expect(clippy::too_many_arguments, reason = "what the kernel is bound to")]
pub(crate) fn scaled_gemm<S: Int, O: Float, W: Size>(
    lhs_codes: &Array<u32>,
    lhs_scales: &Array<S>,
    lhs: &Extent,
    rhs_codes: &Array<u32>,
    rhs_scales: &Array<S>,
    rhs: &Extent,
    scaling: &Scaling,
    out: &mut Array<Vector<O, W>>,
    #[comptime] plan: Plan,
    #[define(S)] _scale_type: StorageType,
    #[define(O)] _out_type: StorageType,
) {
    let tiling = comptime!(plan.tiling);
    let k_blocks = u32::min(lhs.row_blocks, rhs.row_blocks);
    let mut a = Operand::<S> {
        codes: lhs_codes.to_slice(),
        scales: lhs_scales.to_slice(),
        first: CUBE_POS_X * plan.lhs.tile_rows,
        rows: lhs.rows,
        row_blocks: lhs.row_blocks,
        k_blocks,
        // Asynchronous copies write 16 bytes at once.
        staged_codes: SharedMemory::<u32>::new_aligned(plan.staged_codes(plan.lhs), 16usize),
        staged_scales: SharedMemory::<u32>::new(plan.staged_scales(plan.lhs)),
        carried_codes: Array::<u32>::new(plan.lhs.unit_words() as usize),
        carried_scales: Array::<u32>::new(plan.lhs.unit_scales() as usize),
        side: plan.lhs,
    };
    let mut b = Operand::<S> {
        codes: rhs_codes.to_slice(),
        scales: rhs_scales.to_slice(),
        first: CUBE_POS_Y * plan.rhs.tile_rows,
        rows: rhs.rows,
        row_blocks: rhs.row_blocks,
        k_blocks,
        staged_codes: SharedMemory::<u32>::new_aligned(plan.staged_codes(plan.rhs), 16usize),
        staged_scales: SharedMemory::<u32>::new(plan.staged_scales(plan.rhs)),
        carried_codes: Array::<u32>::new(plan.rhs.unit_words() as usize),
        carried_scales: Array::<u32>::new(plan.rhs.unit_scales() as usize),
        side: plan.rhs,
    };
    let exchange_words = comptime!(match plan.mma {
        // Not used, but an array of no words cannot be declared.
        Mma::Native => 1,
        Mma::Emulated => tiling.units() / LANES * EXCHANGE,
    });
    let mut exchange = SharedMemory::<u32>::new(exchange_words as usize);

    let sums = comptime!(tiling.fragments()[0] * tiling.fragments()[1] * D_ELEMENTS);
    let mut accumulators = Array::<f32>::new(sums as usize);
    #[unroll(plan.unrolled())]
    for i in 0..sums as usize {
        accumulators[i] = 0.0f32;
    }

    let mut arrived = Sequence::<Shared<Barrier>>::new();
    if let Copies::Async { .. } = comptime!(plan.copies) {
        #[unroll]
        for _ in 0..tiling.stages() {
            arrived.push(Barrier::shared(CUBE_DIM, UNIT_POS == 0));
        }
    }

    // 1.
    let tiles = k_blocks.div_ceil(comptime!(tiling.tile_k() / 16));
    #[unroll]
    for stage in 0..comptime!(tiling.stages() - 1) {
        if stage < tiles {
            begin::<S>(&mut a, stage, stage, plan.copies);
            begin::<S>(&mut b, stage, stage, plan.copies);
            complete::<S>(&mut a, stage, plan.copies);
            complete::<S>(&mut b, stage, plan.copies);
            announce(&arrived, stage, plan.copies);
        }
    }

    // 2.
    let mut tile = 0u32;
    let mut phase = 0u32;
    while tile < tiles {
        #[unroll]
        for stage in 0..tiling.stages() {
            if tile + stage < tiles {
                let ahead = tile + comptime!(stage + tiling.stages() - 1);
                let freed = comptime!((stage + tiling.stages() - 1) % tiling.stages());
                if let Copies::Async { .. } = comptime!(plan.copies) {
                    arrived.index(stage as usize).wait_parity(phase);
                }
                // Registers: the stores of this stage are visible. Both: nobody reads the freed
                // one.
                sync_cube();
                if ahead < tiles {
                    begin::<S>(&mut a, ahead, freed, plan.copies);
                    begin::<S>(&mut b, ahead, freed, plan.copies);
                }
                multiply_stage::<S>(&a, &b, stage, &mut accumulators, &mut exchange, plan);
                if ahead < tiles {
                    complete::<S>(&mut a, freed, plan.copies);
                    complete::<S>(&mut b, freed, plan.copies);
                    announce(&arrived, freed, plan.copies);
                }
            }
        }
        tile += tiling.stages();
        phase ^= 1;
    }

    // 3.
    write_out::<O, W>(
        &accumulators,
        a.first,
        b.first,
        lhs.rows,
        rhs.rows,
        scaling,
        out,
        plan,
    );
}

/// Starts to carry a tile into a stage.
#[cube]
fn begin<S: Int>(
    operand: &mut Operand<S>,
    tile: u32,
    #[comptime] stage: u32,
    #[comptime] copies: Copies,
) {
    match comptime!(copies) {
        Copies::Async { words } => operand.copy_codes(tile, stage, words),
        Copies::Registers => operand.fetch_codes(tile),
    }
    operand.fetch_scales(tile);
}

/// Puts into the stage what registers carry.
#[cube]
fn complete<S: Int>(operand: &mut Operand<S>, #[comptime] stage: u32, #[comptime] copies: Copies) {
    match comptime!(copies) {
        Copies::Async { .. } => {}
        Copies::Registers => operand.store_codes(stage),
    }
    operand.store_scales(stage);
}

/// Counts this unit's copies into a stage, and its stores, toward the stage's barrier.
#[cube]
fn announce(
    arrived: &Sequence<Shared<Barrier>>,
    #[comptime] stage: u32,
    #[comptime] copies: Copies,
) {
    match comptime!(copies) {
        Copies::Async { .. } => {
            let barrier = arrived.index(stage as usize);
            barrier.commit_copy_async();
            barrier.arrive();
        }
        Copies::Registers => {}
    }
}

/// Multiplies a lane group's part of one stage.
#[cube]
fn multiply_stage<S: Int>(
    a: &Operand<S>,
    b: &Operand<S>,
    #[comptime] stage: u32,
    accumulators: &mut Array<f32>,
    exchange: &mut SharedMemory<u32>,
    #[comptime] plan: Plan,
) {
    let tiling = comptime!(plan.tiling);
    let fragments = comptime!(tiling.fragments());
    let lane = UNIT_POS % LANES;
    let (first_row, first_column) = group_origin(plan.tiling);

    let mut registers = Fragments {
        a: Array::<u32>::new(comptime!(A_REGISTERS as usize)),
        b: Array::<u32>::new(comptime!(B_REGISTERS as usize)),
        scales: Array::<u32>::new(2usize),
    };
    let mut columns = Array::<u32>::new(comptime!((fragments[1] * B_REGISTERS) as usize));
    let mut column_scales = Array::<u32>::new(comptime!(fragments[1] as usize));
    #[unroll(plan.unrolled())]
    for step in 0..tiling.k_steps() {
        #[unroll(plan.unrolled())]
        for j in 0..comptime!(fragments[1]) {
            let column = first_column + j * N;
            #[unroll]
            for register in 0..B_REGISTERS {
                let word = step * WORDS + b_word(lane, register);
                columns[(j * B_REGISTERS + register) as usize] =
                    b.word(stage, column + b_column(lane), word);
            }
            column_scales[j as usize] = b.scale_word(stage, column + b_scale_column(lane), step);
        }
        #[unroll(plan.unrolled())]
        for i in 0..comptime!(fragments[0]) {
            let row = first_row + i * M;
            #[unroll]
            for register in 0..A_REGISTERS {
                let word = step * WORDS + a_word(lane, register);
                registers.a[register as usize] = a.word(stage, row + a_row(lane, register), word);
            }
            registers.scales[0] = a.scale_word(stage, row + a_scale_row(lane), step);
            #[unroll(plan.unrolled())]
            for j in 0..comptime!(fragments[1]) {
                #[unroll]
                for register in 0..B_REGISTERS {
                    registers.b[register as usize] = columns[(j * B_REGISTERS + register) as usize];
                }
                registers.scales[1] = column_scales[j as usize];
                let at = (i * comptime!(fragments[1]) + j) * D_ELEMENTS;
                multiply(&registers, accumulators, at, exchange, plan.mma);
            }
        }
    }
}

/// First row and column of this unit's lane group in the tile.
#[cube]
fn group_origin(#[comptime] tiling: Tiling) -> (u32, u32) {
    let group = UNIT_POS / LANES;
    let columns = comptime!(tiling.groups()[1]);
    let fragments = comptime!(tiling.fragments());
    (
        (group / columns) * comptime!(fragments[0] * M),
        (group % columns) * comptime!(fragments[1] * N),
    )
}

#[cube]
#[expect(
    clippy::too_many_arguments,
    reason = "the tail of the kernel, called once"
)]
fn write_out<O: Float, W: Size>(
    accumulators: &Array<f32>,
    tile_row: u32,
    tile_column: u32,
    m: u32,
    n: u32,
    scaling: &Scaling,
    out: &mut Array<Vector<O, W>>,
    #[comptime] plan: Plan,
) {
    let width = out.vector_size();
    let step = comptime!(if width == 2 { 2u32 } else { 1u32 });
    let fragments = comptime!(plan.tiling.fragments());
    let lane = UNIT_POS % LANES;
    let (first_row, first_column) = group_origin(plan.tiling);
    let alpha = #[comptime]
    match &scaling.alpha {
        ComptimeOption::Some(alpha) => alpha[0],
        ComptimeOption::None => 1.0f32,
    };
    #[unroll(plan.unrolled())]
    for i in 0..comptime!(fragments[0]) {
        #[unroll(plan.unrolled())]
        for j in 0..comptime!(fragments[1]) {
            #[unroll]
            for element in range_stepped(0u32, D_ELEMENTS, step) {
                let row = tile_row + first_row + i * M + d_row(lane, element);
                let column = tile_column + first_column + j * N + d_column(lane, element);
                // With two columns to a vector `n` is even, and either both are inside or none.
                if row < m && column < n {
                    let mut values = Vector::<O, W>::empty();
                    #[unroll]
                    for w in 0..width {
                        let at = (i * comptime!(fragments[1]) + j) * D_ELEMENTS + element;
                        let mut value = accumulators[at as usize + w] * alpha;
                        #[comptime]
                        match &scaling.bias {
                            ComptimeOption::Some(bias) => {
                                value += bias[column as usize + w];
                            }
                            ComptimeOption::None => {}
                        }
                        values[w] = O::cast_from(value);
                    }
                    out[(row as usize * n as usize + column as usize) / width] = values;
                }
            }
        }
    }
}
