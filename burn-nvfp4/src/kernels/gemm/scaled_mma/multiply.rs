//! One `m16n8k64` MMA of a lane group: by the tensor core, or by its units in software.
//!
//! Both take the same registers of each lane. The emulated form deals them out through shared
//! memory and reads them back from where [`layout`](super::layout) says the instruction finds
//! them, so a loader that puts an element into a wrong register is wrong in both.
//!
//! The emulated sum of a block is exact: products of codes are multiples of 1/4, sixteen of them
//! are an integer below 2^12 in quarters, and the product of two E4M3 scales has eight bits. The
//! accumulator is rounded once per block, in the order of `k`. How often a tensor core rounds
//! inside its 64 products is not documented.

use cubecl::prelude::*;
use cubecl::{e2m1x2, e4m3};

use super::Mma;
use super::layout::{
    A_REGISTERS, B_REGISTERS, BLOCKS, D_ELEMENTS, LANES, a_lane, a_register, a_scale_lane, b_lane,
    b_register, b_scale_lane, d_column, d_row,
};

/// Where the registers of B begin in a lane group's exchange.
const B_AT: u32 = LANES * A_REGISTERS;
/// Where the scales of A begin.
const A_SCALES_AT: u32 = B_AT + LANES * B_REGISTERS;
/// Where the scales of B begin.
const B_SCALES_AT: u32 = A_SCALES_AT + LANES;
/// Words that one lane group exchanges for an emulated MMA.
pub(crate) const EXCHANGE: u32 = B_SCALES_AT + LANES;

/// Registers that a lane brings to one MMA.
#[derive(CubeType)]
pub(crate) struct Fragments {
    /// Four words of A.
    pub(crate) a: Array<u32>,
    /// Two words of B.
    pub(crate) b: Array<u32>,
    /// Four scales of A in the first word, four of B in the second.
    pub(crate) scales: Array<u32>,
}

/// Adds `A B` to the four accumulators of each lane that begin at `at`.
///
/// All units of a cube call it together: the emulated form has barriers.
#[cube]
pub(crate) fn multiply(
    fragments: &Fragments,
    accumulators: &mut Array<f32>,
    at: u32,
    exchange: &mut SharedMemory<u32>,
    #[comptime] mma: Mma,
) {
    match comptime!(mma) {
        Mma::Native => native(fragments, accumulators, at),
        Mma::Emulated => emulated(fragments, accumulators, at, exchange),
    }
}

#[cube]
fn native(fragments: &Fragments, accumulators: &mut Array<f32>, at: u32) {
    let definition = cmma::MmaDefinition::<e2m1x2, e2m1x2, f32>::new_scaled::<e4m3>(
        16usize, 8usize, 64usize, 4usize,
    );
    let mut a = Array::<Vector<e2m1x2, Const<4>>>::new(4usize);
    let mut b = Array::<Vector<e2m1x2, Const<4>>>::new(2usize);
    let mut c = Array::<Vector<f32, Const<2>>>::new(2usize);
    #[unroll]
    for register in 0..4usize {
        a[register] = Vector::<e2m1x2, Const<4>>::reinterpret(fragments.a[register]);
    }
    #[unroll]
    for register in 0..2usize {
        b[register] = Vector::<e2m1x2, Const<4>>::reinterpret(fragments.b[register]);
    }
    #[unroll]
    for half in 0..2usize {
        let mut pair = Vector::<f32, Const<2>>::empty();
        pair[0] = accumulators[at as usize + half * 2];
        pair[1] = accumulators[at as usize + half * 2 + 1];
        c[half] = pair;
    }
    let d = definition.execute_scaled(
        &a,
        &b,
        &c,
        Vector::<e4m3, Const<4>>::reinterpret(fragments.scales[0]),
        Vector::<e4m3, Const<4>>::reinterpret(fragments.scales[1]),
    );
    #[unroll]
    for half in 0..2usize {
        let pair = d[half];
        accumulators[at as usize + half * 2] = pair[0];
        accumulators[at as usize + half * 2 + 1] = pair[1];
    }
}

#[cube]
fn emulated(
    fragments: &Fragments,
    accumulators: &mut Array<f32>,
    at: u32,
    exchange: &mut SharedMemory<u32>,
) {
    let lane = UNIT_POS % LANES;
    let base = (UNIT_POS / LANES) * EXCHANGE;

    #[unroll]
    for register in 0..A_REGISTERS {
        let to = base + lane * A_REGISTERS + register;
        exchange[to as usize] = fragments.a[register as usize];
    }
    #[unroll]
    for register in 0..B_REGISTERS {
        let to = base + B_AT + lane * B_REGISTERS + register;
        exchange[to as usize] = fragments.b[register as usize];
    }
    exchange[(base + A_SCALES_AT + lane) as usize] = fragments.scales[0];
    exchange[(base + B_SCALES_AT + lane) as usize] = fragments.scales[1];
    sync_cube();

    for element in 0..D_ELEMENTS {
        let row = d_row(lane, element);
        let column = d_column(lane, element);
        let a_scales = exchange[(base + A_SCALES_AT + a_scale_lane(row)) as usize];
        let b_scales = exchange[(base + B_SCALES_AT + b_scale_lane(column)) as usize];
        let mut sum = accumulators[(at + element) as usize];
        for block in 0..BLOCKS {
            let mut quarters = 0i32;
            for half in 0..2u32 {
                let word = block * 2 + half;
                let from = a_lane(row, word) * A_REGISTERS + a_register(row, word);
                let a = exchange[(base + from) as usize];
                let from = b_lane(column, word) * B_REGISTERS + b_register(word);
                let b = exchange[(base + B_AT + from) as usize];
                #[unroll]
                for code in 0..8u32 {
                    quarters += e2m1_doubled(a >> (code * 4)) * e2m1_doubled(b >> (code * 4));
                }
            }
            let scale = ue4m3(a_scales >> (block * 8)) * ue4m3(b_scales >> (block * 8));
            sum += f32::cast_from(quarters) * 0.25f32 * scale;
        }
        accumulators[(at + element) as usize] = sum;
    }
    // The next MMA writes the exchange again.
    sync_cube();
}

/// Twice the value of the E2M1 code in the lowest four bits.
#[cube]
fn e2m1_doubled(bits: u32) -> i32 {
    // 0, 1, 2, 3, 4, 6, 8, 12 in the nibbles of one word.
    let magnitude = i32::cast_from((0xC864_3210u32 >> ((bits & 7) * 4)) & 15);
    select(bits & 8 == 0, magnitude, -magnitude)
}

/// The value of the E4M3 byte in the lowest eight bits, without its sign bit, as the instruction
/// reads it.
///
/// 0x7F would be NaN; no quantizer writes it.
#[cube]
fn ue4m3(bits: u32) -> f32 {
    let magnitude = bits & 0x7F;
    let normal = f32::reinterpret((magnitude << 20) + (120u32 << 23));
    select(
        magnitude < 8,
        f32::cast_from(magnitude) * 0.001953125f32,
        normal,
    )
}
