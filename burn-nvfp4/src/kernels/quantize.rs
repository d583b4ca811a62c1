//! Quantizing a tensor for one GEMM or two; the twin of `cpu/quantize.rs` (numerics §2 to §7).
//!
//! 1. One launch takes every tensor amax that the jobs need: partial maxima, see `amax`.
//! 2. One launch does the rest. Each cube reduces the partial maxima once and then walks over
//!    tiles of the source: load a group of sixteen, transform it, block amax and scale, codes, and
//!    out, packed or decoded or both. With two jobs the same cube does both on a tile, so that the
//!    second reads what the first has brought into the cache.
//!
//! Formats without a tensor amax need the second launch only. Row amaxes and FP8 blocks have a
//! launch of their own for theirs.

#![expect(
    clippy::collapsible_if,
    clippy::manual_is_multiple_of,
    reason = "a comptime condition is not a runtime one, and kernels have no `is_multiple_of`"
)]

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::alpha::{AlphaOutput, write_alpha};
use super::amax::{Slot, reduce_partials};
use super::arithmetic::INFINITY;
use super::e4m3::of_byte;
use super::four_over_six::ErrorRule;
use super::group::{
    Access, Elements, GROUP, Geometry, TileWalk, advance, group_amax, load, place, small, tile_walk,
};
use super::hadamard::transform;
use super::pairs::{load_pairs, pairs_amax, unpack};
use super::philox::KeyWords;
use super::scale::{TensorLevel, tensor_level};
use crate::cpu::Contraction;
use crate::recipe::E8m0Rule;

mod block_scale;
mod elements;
mod memory;
mod job;
mod launch;
mod eden;

use block_scale::{choose, nvfp4_scale, scale_of_block, share_amaxes};
use elements::{finish, store_decoded};
pub use job::{Job, Packing, Quantized, Watch, packs_either_axis};
pub use launch::{quantize, quantize_for, quantize_under};

/// Which codes, by which rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Codes {
    E2m1Nearest,
    E2m1Stochastic,
    E4m3,
}

/// How the scale of a block follows from its amax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scales {
    /// E4M3, block amax to 6.
    Nvfp4,
    /// E4M3, block amax to 6 or to 4.
    FourOverSix(ErrorRule),
    /// E4M3, corrected and rounded stochastically: a kernel of its own.
    Eden,
    /// E8M0 for elements up to the f32 with these bits.
    Mx { rule: E8m0Rule, element_max: u32 },
    /// One encode scale for everything.
    Fp8Tensor,
    /// One f32 scale per block.
    Fp8Block,
}

/// Where the amax comes from that a scale needs besides that of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum AmaxSource {
    /// It needs none.
    None,
    /// Partial maxima of the tensor.
    Partials(Slot),
    /// Given: that of another step, in the place of the row amaxes.
    Given,
    /// One per row of the packed operand.
    Rows,
    /// One per block: the block amaxes themselves.
    Blocks,
}

/// What a job writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Results {
    Packed,
    Decoded,
    Both,
}

impl Results {
    const fn has_packed(self) -> bool {
        !matches!(self, Self::Decoded)
    }

    const fn has_decoded(self) -> bool {
        !matches!(self, Self::Packed)
    }
}

/// All that is known of a job when its kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    pub(super) access: Access,
    pub(super) codes: Codes,
    pub(super) scales: Scales,
    pub(super) amax: AmaxSource,
    /// Signs of the Hadamard transform.
    pub(super) signs: Option<u16>,
    /// Rows and groups of a block.
    pub(super) block_rows: u32,
    pub(super) block_groups: u32,
    pub(super) results: Results,
}

impl Plan {
    const fn words(&self) -> usize {
        match self.codes {
            Codes::E2m1Nearest | Codes::E2m1Stochastic => 2,
            Codes::E4m3 => 4,
        }
    }

    const fn is_along_columns(&self) -> bool {
        matches!(self.access.along, Contraction::Columns)
    }

    /// Whether a group is read as eight words of two elements.
    const fn reads_pairs(&self) -> bool {
        matches!(self.access.elements, Elements::Bf16Pairs) && self.signs.is_none()
    }

    /// Units or columns whose groups make up one block, where a block is larger than a group and
    /// its amax is taken here.
    const fn members(&self) -> u32 {
        match self.scales {
            Scales::Nvfp4 | Scales::FourOverSix(_) | Scales::Mx { .. } => {
                self.block_rows * self.block_groups
            }
            Scales::Eden | Scales::Fp8Tensor | Scales::Fp8Block => 1,
        }
    }

    /// How far apart the members lie in shared memory, where column `w` of unit `u` has the place
    /// `width * u + w`.
    const fn member_stride(&self) -> u32 {
        match (self.access.along, self.block_rows) {
            (Contraction::Columns, 1) => 1,
            (Contraction::Columns, _) => self.access.groups(),
            (Contraction::Rows, 1) => self.access.lane() * self.access.width,
            (Contraction::Rows, _) => 1,
        }
    }

    const fn error_rule(&self) -> Option<ErrorRule> {
        match self.scales {
            Scales::FourOverSix(rule) => Some(rule),
            Scales::Nvfp4
            | Scales::Eden
            | Scales::Mx { .. }
            | Scales::Fp8Tensor
            | Scales::Fp8Block => None,
        }
    }

    const fn mx(&self) -> Option<(E8m0Rule, u32)> {
        match self.scales {
            Scales::Mx { rule, element_max } => Some((rule, element_max)),
            Scales::Nvfp4
            | Scales::FourOverSix(_)
            | Scales::Eden
            | Scales::Fp8Tensor
            | Scales::Fp8Block => None,
        }
    }

    const fn slot(&self) -> Option<Slot> {
        match self.amax {
            AmaxSource::Partials(slot) => Some(slot),
            AmaxSource::None | AmaxSource::Given | AmaxSource::Rows | AmaxSource::Blocks => None,
        }
    }

    const fn is_given(&self) -> bool {
        matches!(self.amax, AmaxSource::Given)
    }

    const fn has_tensor_scale(&self) -> bool {
        match self.scales {
            Scales::Nvfp4 | Scales::FourOverSix(_) | Scales::Eden | Scales::Fp8Tensor => true,
            Scales::Mx { .. } | Scales::Fp8Block => false,
        }
    }
}

/// Runtime arguments of a job.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Arguments {
    /// Groups in a row of the packed operand, padding included.
    groups: u32,
    /// Elements along the contraction axis that are written decoded.
    decoded_k: u32,
    q_max: f32,
    key: KeyWords,
    /// Zero, which no compiler may know.
    zero: u32,
    /// Cubes that wrote partial maxima.
    partials: u32,
}

/// Where a job writes.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Outputs<S: Numeric, NC: Size, D: Float, ND: Size> {
    /// One group to a vector.
    codes: ComptimeOption<Array<Vector<u32, NC>>>,
    scales: ComptimeOption<Array<S>>,
    decoded: ComptimeOption<Array<Vector<D, ND>>>,
    /// `[1]`: the tensor amax.
    amax: ComptimeOption<Array<f32>>,
}

/// Reports a tensor that holds NaN or an infinity.
#[derive(CubeType, CubeLaunch)]
pub(super) struct WatchOutput {
    found: Array<u32>,
    id: u32,
}

/// One job, or the first of two.
#[cube(launch_unchecked, address_type = "dynamic")]
fn quantize_one<F: Float, N: Size, S: Numeric, NC: Size, D: Float, ND: Size>(
    source: &Array<Vector<F, N>>,
    geometry: Geometry,
    partials: &ComptimeOption<Array<u32>>,
    regions: &ComptimeOption<Array<u32>>,
    arguments: Arguments,
    outputs: &mut Outputs<S, NC, D, ND>,
    watch: &mut ComptimeOption<WatchOutput>,
    alpha: &mut ComptimeOption<AlphaOutput>,
    cubes: u32,
    #[comptime] plan: Plan,
    #[define(F)] _source_dtype: StorageType,
    #[define(S)] _scale_dtype: StorageType,
    #[define(D)] _decoded_dtype: StorageType,
) {
    let units = comptime!(plan.access.tiling.units);
    let mut shared = SharedMemory::<u32>::new(comptime!((units * plan.access.width) as usize));
    let level = start(partials, regions, &arguments, outputs, &mut shared, plan);
    write_alpha(tensor_amax(&level, plan), alpha);
    report(partials, &arguments, watch, &mut shared, units);
    let mut tile = u32::cast_from(CUBE_POS);
    let mut tiles = tile_walk(cubes, &geometry);
    while tile < geometry.tiles_across * geometry.tiles_down {
        quantize_tile::<F, N, S, NC, D, ND>(
            source,
            regions,
            outputs,
            &mut shared,
            &level,
            &arguments,
            &tiles,
            &geometry,
            plan,
        );
        tile += cubes;
        advance(&mut tiles, &geometry);
    }
}

/// Two jobs on one tensor, in the same tiles.
#[cube(launch_unchecked, address_type = "dynamic")]
fn quantize_two<
    F: Float,
    NA: Size,
    SA: Numeric,
    NCA: Size,
    DA: Float,
    NDA: Size,
    NB: Size,
    SB: Numeric,
    NCB: Size,
    DB: Float,
    NDB: Size,
>(
    source_a: &Array<Vector<F, NA>>,
    geometry_a: Geometry,
    regions_a: &ComptimeOption<Array<u32>>,
    arguments_a: Arguments,
    outputs_a: &mut Outputs<SA, NCA, DA, NDA>,
    source_b: &Array<Vector<F, NB>>,
    geometry_b: Geometry,
    regions_b: &ComptimeOption<Array<u32>>,
    arguments_b: Arguments,
    outputs_b: &mut Outputs<SB, NCB, DB, NDB>,
    partials: &ComptimeOption<Array<u32>>,
    watch: &mut ComptimeOption<WatchOutput>,
    alpha: &mut ComptimeOption<AlphaOutput>,
    cubes: u32,
    #[comptime] plan_a: Plan,
    #[comptime] plan_b: Plan,
    #[define(F)] _source_dtype: StorageType,
    #[define(SA)] _scale_dtype_a: StorageType,
    #[define(DA)] _decoded_dtype_a: StorageType,
    #[define(SB)] _scale_dtype_b: StorageType,
    #[define(DB)] _decoded_dtype_b: StorageType,
) {
    let units = comptime!(plan_a.access.tiling.units);
    let width = comptime!(if plan_a.access.width > plan_b.access.width {
        plan_a.access.width
    } else {
        plan_b.access.width
    });
    let mut shared = SharedMemory::<u32>::new(comptime!((units * width) as usize));
    let level_a = start(
        partials,
        regions_a,
        &arguments_a,
        outputs_a,
        &mut shared,
        plan_a,
    );
    let level_b = start(
        partials,
        regions_b,
        &arguments_b,
        outputs_b,
        &mut shared,
        plan_b,
    );
    write_alpha(tensor_amax(&level_a, plan_a), alpha);
    report(partials, &arguments_a, watch, &mut shared, units);
    let mut tile = u32::cast_from(CUBE_POS);
    let mut tiles = tile_walk(cubes, &geometry_a);
    while tile < geometry_a.tiles_across * geometry_a.tiles_down {
        quantize_tile::<F, NA, SA, NCA, DA, NDA>(
            source_a,
            regions_a,
            outputs_a,
            &mut shared,
            &level_a,
            &arguments_a,
            &tiles,
            &geometry_a,
            plan_a,
        );
        quantize_tile::<F, NB, SB, NCB, DB, NDB>(
            source_b,
            regions_b,
            outputs_b,
            &mut shared,
            &level_b,
            &arguments_b,
            &tiles,
            &geometry_b,
            plan_b,
        );
        tile += cubes;
        advance(&mut tiles, &geometry_a);
    }
}

/// The tensor level of a job, which the first cube also writes out.
#[cube]
fn start<S: Numeric, NC: Size, D: Float, ND: Size>(
    partials: &ComptimeOption<Array<u32>>,
    regions: &ComptimeOption<Array<u32>>,
    arguments: &Arguments,
    outputs: &mut Outputs<S, NC, D, ND>,
    shared: &mut SharedMemory<u32>,
    #[comptime] plan: Plan,
) -> TensorLevel {
    if comptime!(plan.is_given()) {
        let amax = f32::reinterpret(regions.as_ref().unwrap()[0]);
        tensor_level(amax, arguments.q_max, comptime!(plan.access.arithmetic))
    } else if comptime!(plan.slot().is_some()) {
        let slot = comptime!(plan.slot().unwrap_or(Slot::Plain));
        let partials = partials.as_ref().unwrap();
        let amax = f32::reinterpret(reduce_partials(
            partials,
            arguments.partials as usize,
            shared,
            slot,
            comptime!(plan.access.tiling.units),
        ));
        let level = tensor_level(amax, arguments.q_max, comptime!(plan.access.arithmetic));
        write_amax(tensor_amax(&level, plan), outputs);
        level
    } else {
        write_amax(1.0f32.runtime(), outputs);
        // Nothing of it is read: rows and blocks have levels of their own.
        TensorLevel {
            amax: 1.0f32.runtime(),
            encode: 1.0f32.runtime(),
            encode_sixth: 1.0f32.runtime(),
            decode: 1.0f32.runtime(),
        }
    }
}

/// The amax that belongs after the GEMM; 1 if none does.
#[cube]
fn tensor_amax(level: &TensorLevel, #[comptime] plan: Plan) -> f32 {
    if comptime!(plan.has_tensor_scale()) {
        level.amax
    } else {
        1.0f32.runtime()
    }
}

/// Has the first unit of the first cube write the amax of an operand that hands one on.
#[cube]
fn write_amax<S: Numeric, NC: Size, D: Float, ND: Size>(
    amax: f32,
    outputs: &mut Outputs<S, NC, D, ND>,
) {
    let writes = outputs.amax.is_some();
    if comptime!(writes) {
        if CUBE_POS == 0 && UNIT_POS == 0 {
            let out = outputs.amax.as_mut().unwrap();
            out[0] = amax;
        }
    }
}

/// Writes the id of a tensor that is not finite, unless another one was first.
#[cube]
fn report(
    partials: &ComptimeOption<Array<u32>>,
    arguments: &Arguments,
    watch: &mut ComptimeOption<WatchOutput>,
    shared: &mut SharedMemory<u32>,
    #[comptime] units: u32,
) {
    let watched = watch.is_some();
    if comptime!(watched) {
        let partials = partials.as_ref().unwrap();
        let largest = reduce_partials(
            partials,
            arguments.partials as usize,
            shared,
            Slot::Watch,
            units,
        );
        if CUBE_POS == 0 && UNIT_POS == 0 && largest >= INFINITY {
            let watch = watch.as_mut().unwrap();
            if watch.found[0] == 0xFFFF_FFFFu32 {
                watch.found[0] = watch.id;
            }
        }
    }
}

/// One job on one tile.
#[cube]
fn quantize_tile<F: Float, N: Size, S: Numeric, NC: Size, D: Float, ND: Size>(
    source: &Array<Vector<F, N>>,
    regions: &ComptimeOption<Array<u32>>,
    outputs: &mut Outputs<S, NC, D, ND>,
    shared: &mut SharedMemory<u32>,
    level: &TensorLevel,
    arguments: &Arguments,
    tiles: &TileWalk,
    geometry: &Geometry,
    #[comptime] plan: Plan,
) {
    let arithmetic = comptime!(plan.access.arithmetic);
    let width = comptime!(plan.access.width as usize);
    // Backwards: what the amax launch read last is still in the cache.
    let down = geometry.tiles_down - 1u32 - tiles.down;
    let across = geometry.tiles_across - 1u32 - tiles.across;
    for round in 0..comptime!(plan.access.rounds()) {
        let here = place(down, across, round, plan.access);
        let mut values = Array::<f32>::new(comptime!(GROUP as usize * width));
        let mut amaxes = Array::<f32>::new(width);
        if comptime!(plan.reads_pairs()) {
            let mut words = load_pairs::<F, N>(source, here, geometry, plan.access);
            amaxes[0] = pairs_amax(&mut words, arguments.zero);
            unpack(&words, &mut values, arguments.zero);
        } else {
            load::<F, N>(source, &mut values, here, geometry, plan.access);
        }
        #[unroll]
        for w in 0..width {
            let start = comptime!(w * GROUP as usize);
            if comptime!(plan.signs.is_some()) {
                let signs = comptime!(plan.signs.unwrap_or_default());
                transform(
                    &mut values,
                    start,
                    signs,
                    comptime!(plan.access.elements),
                    arithmetic,
                );
            }
            if comptime!(!plan.reads_pairs()) {
                amaxes[w] = group_amax(&values, start, arithmetic);
            }
        }
        share_amaxes(&mut amaxes, shared, plan);
        let packed_rows = if comptime!(plan.is_along_columns()) {
            geometry.rows
        } else {
            geometry.cols
        };
        let exists = here.row < packed_rows && here.group < arguments.groups;
        if comptime!(plan.error_rule().is_some()) {
            let scales = choose(&values, &amaxes, shared, level, arguments, plan);
            #[unroll]
            for w in 0..width {
                let scale = nvfp4_scale(of_byte(scales[w]), level, plan);
                finish::<S, NC, D, ND>(
                    &mut values,
                    scale,
                    here,
                    exists,
                    outputs,
                    level,
                    arguments,
                    w,
                    plan,
                );
            }
        } else {
            #[unroll]
            for w in 0..width {
                let row = here.row + comptime!(small(w));
                let scale = scale_of_block(
                    amaxes[w], row, here.group, exists, regions, level, arguments, plan,
                );
                finish::<S, NC, D, ND>(
                    &mut values,
                    scale,
                    here,
                    exists,
                    outputs,
                    level,
                    arguments,
                    w,
                    plan,
                );
            }
        }
        store_decoded::<S, NC, D, ND>(&values, here, exists, outputs, arguments, geometry, plan);
    }
}
