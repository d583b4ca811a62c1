//! From the amaxes of groups to the scales of blocks; the twin of `cpu/block_scale.rs` (numerics
//! §2, §3, §6, §7).
//!
//! A block larger than a group has its members in several units, which meet in shared memory.

use cubecl::prelude::*;

use super::{AmaxSource, Arguments, Plan, Scales};
use crate::kernels::arithmetic::divide;
use crate::kernels::e4m3::Rounded;
use crate::kernels::e8m0::{
    decode as decode_e8m0, encode as encode_e8m0, reciprocal as reciprocal_e8m0,
};
use crate::kernels::four_over_six::{candidates, row_error, tree_sum};
use crate::kernels::group::{GROUP, small};
use crate::kernels::scale::{
    TensorLevel, block_encode_scale, block_scale, tensor_encode_scale, tensor_level,
};

/// Scales of a block.
#[derive(CubeType, Clone, Copy)]
pub(super) struct BlockScale {
    /// As it is stored, in the one-byte formats.
    pub(super) byte: u32,
    pub(super) decode: f32,
    pub(super) encode: f32,
}

/// Where the members of the block of column `w` begin in shared memory.
#[cube]
pub(super) fn first_member(#[comptime] w: u32, #[comptime] plan: Plan) -> u32 {
    let lane = comptime!(plan.access.lane());
    let width = comptime!(plan.access.width);
    let groups = comptime!(plan.access.groups());
    if comptime!(plan.is_along_columns()) {
        if comptime!(plan.block_rows == 1) {
            UNIT_POS - UNIT_POS % comptime!(plan.block_groups)
        } else {
            UNIT_POS / (groups * 16u32) * (groups * 16u32) + UNIT_POS % groups
        }
    } else if comptime!(plan.block_rows == 1) {
        (UNIT_POS - UNIT_POS / lane % comptime!(plan.block_groups) * lane) * width + w
    } else {
        (UNIT_POS - UNIT_POS % lane) * width
    }
}

/// Block amaxes from group amaxes, where a block is larger than a group.
#[cube]
pub(super) fn share_amaxes(
    amaxes: &mut Array<f32>,
    shared: &mut SharedMemory<u32>,
    #[comptime] plan: Plan,
) {
    let width = comptime!(plan.access.width as usize);
    if comptime!(plan.members() > 1) {
        #[unroll]
        for w in 0..width {
            shared[UNIT_POS as usize * width + w] = u32::reinterpret(amaxes[w]);
        }
        sync_cube();
        #[unroll]
        for w in 0..width {
            let first = first_member(comptime!(small(w)), plan);
            let mut amax = 0u32.runtime();
            #[unroll]
            for member in 0..comptime!(plan.members()) {
                let offset = comptime!(member * plan.member_stride());
                amax = u32::max(amax, shared[(first + offset) as usize]);
            }
            amaxes[w] = f32::reinterpret(amax);
        }
        sync_cube();
    }
}

/// The scales that four-over-six picks for the blocks of a unit.
#[cube]
pub(super) fn choose(
    values: &Array<f32>,
    amaxes: &Array<f32>,
    shared: &mut SharedMemory<u32>,
    level: &TensorLevel,
    arguments: &Arguments,
    #[comptime] plan: Plan,
) -> Array<u32> {
    let arithmetic = comptime!(plan.access.arithmetic);
    let width = comptime!(plan.access.width as usize);
    let rule = comptime!(plan.error_rule().expect("a four-over-six plan has a rule"));
    let mut scales = Array::<u32>::new(width);
    let mut errors = Array::<f32>::new(comptime!(2 * width));
    #[unroll]
    for w in 0..width {
        let start = comptime!(w * GROUP as usize);
        let pair = candidates(amaxes[w], level, arithmetic);
        errors[2 * w] = row_error(
            values,
            start,
            pair.six,
            level,
            arguments.q_max,
            arguments.zero,
            rule,
            arithmetic,
        );
        errors[2 * w + 1] = row_error(
            values,
            start,
            pair.four,
            level,
            arguments.q_max,
            arguments.zero,
            rule,
            arithmetic,
        );
    }
    if comptime!(plan.block_rows > 1) {
        let stride = comptime!(plan.member_stride() as usize);
        #[unroll]
        for candidate in 0..2usize {
            #[unroll]
            for w in 0..width {
                shared[UNIT_POS as usize * width + w] = u32::reinterpret(errors[2 * w + candidate]);
            }
            sync_cube();
            #[unroll]
            for w in 0..width {
                let first = first_member(comptime!(small(w)), plan);
                errors[2 * w + candidate] = tree_sum(shared, first as usize, stride);
            }
            sync_cube();
        }
    }
    #[unroll]
    for w in 0..width {
        let pair = candidates(amaxes[w], level, arithmetic);
        let four_wins = errors[2 * w + 1] < errors[2 * w];
        scales[w] = select(four_wins, pair.four, pair.six);
    }
    scales
}

/// The E4M3 scale of an NVFP4 block with what goes with it.
#[cube]
pub(super) fn nvfp4_scale(
    scale: Rounded,
    level: &TensorLevel,
    #[comptime] plan: Plan,
) -> BlockScale {
    BlockScale {
        byte: scale.byte,
        decode: scale.value,
        encode: block_encode_scale(scale.value, level, comptime!(plan.access.arithmetic)),
    }
}

/// The scale of a block by every rule but four-over-six.
#[cube]
pub(super) fn scale_of_block(
    amax: f32,
    row: u32,
    group: u32,
    exists: bool,
    regions: &ComptimeOption<Array<u32>>,
    level: &TensorLevel,
    arguments: &Arguments,
    #[comptime] plan: Plan,
) -> BlockScale {
    let arithmetic = comptime!(plan.access.arithmetic);
    if comptime!(plan.scales == Scales::Nvfp4) {
        if comptime!(plan.amax == AmaxSource::Rows) {
            let index = select(exists, row, 0u32);
            let row_amax = f32::reinterpret(regions.as_ref().unwrap()[index as usize]);
            let level = tensor_level(row_amax, arguments.q_max, arithmetic);
            nvfp4_scale(block_scale(amax, &level, arithmetic), &level, plan)
        } else {
            nvfp4_scale(block_scale(amax, level, arithmetic), level, plan)
        }
    } else if comptime!(plan.mx().is_some()) {
        let (rule, element_max) = comptime!(plan.mx().expect("an MX plan has a rule"));
        let code = encode_e8m0(amax, rule, element_max);
        BlockScale {
            byte: code,
            decode: decode_e8m0(code),
            encode: reciprocal_e8m0(code),
        }
    } else if comptime!(plan.scales == Scales::Fp8Block) {
        let index = select(exists, scale_index(row, group, arguments, plan), 0usize);
        let amax = f32::reinterpret(regions.as_ref().unwrap()[index]);
        let encode = tensor_encode_scale(amax, arguments.q_max, arithmetic);
        BlockScale {
            byte: 0u32.runtime(),
            decode: divide(1.0f32, encode, arithmetic),
            encode,
        }
    } else {
        BlockScale {
            byte: 0u32.runtime(),
            decode: 1.0f32.runtime(),
            encode: level.encode,
        }
    }
}

/// The index of the scale of a group.
#[cube]
pub(super) fn scale_index(
    row: u32,
    group: u32,
    arguments: &Arguments,
    #[comptime] plan: Plan,
) -> usize {
    let (rows, groups) = comptime!((plan.block_rows, plan.block_groups));
    (row / rows) as usize * (arguments.groups / groups) as usize + (group / groups) as usize
}
