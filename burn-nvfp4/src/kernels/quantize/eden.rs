//! MS-EDEN on the device; the twin of `cpu/eden.rs` and of the random transform in
//! `cpu/hadamard.rs` (numerics §11).
//!
//! A cube has sixteen vectors of 128 at a time, eight units to a vector, a group to a unit. What a
//! group needs of the others goes through shared memory: the last three stages of the transform,
//! and both sums of the correction. One launch takes the amax behind the transform, another
//! transforms again and quantizes: that costs less than to write a transformed copy.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::block_scale::BlockScale;
use super::elements::{finish, store_decoded};
use super::job::{Quantized, Watch};
use super::launch::{Task, watch_argument};
use super::memory::Memory;
use super::{Arguments, Outputs, Plan, WatchOutput, report, start};
use crate::cpu::Contraction;
use crate::kernels::alpha::{self, AlphaOutput, OperandScale, Pending, write_alpha};
use crate::kernels::amax::{Partials, SLOTS, Slot, write_partial};
use crate::kernels::arithmetic::{Arithmetic, INFINITY, MAGNITUDE, divide, rounded_product};
use crate::kernels::e2m1::{round_rne, saturate};
use crate::kernels::e4m3::{decode as decode_e4m3, encode_stochastic, round as round_e4m3};
use crate::kernels::group::{
    Access, GROUP, Geometry, GeometryLaunch, Tiling, advance, group_amax, load, place, small,
    tile_walk,
};
use crate::kernels::philox::block_bytes;
use crate::kernels::scale::{TensorLevel, block_encode_scale};
use crate::kernels::source::{Source, array, cubes, optional, word};
use crate::rng::RandomKey;

/// Units of a cube: sixteen vectors, with shared memory that every device has.
const UNITS: u32 = 128;

/// Groups of a vector.
const MEMBERS: u32 = 8;

/// Elements from one group to the next in shared memory: one more than it has, so that groups begin
/// in different banks.
const APART: usize = 17;

/// 2^-3.5.
const NORM: f32 = 0.088_388_346;

/// `0.93 * (17 / 16) / 6`; see `format::scale`.
const EDEN_PART: f32 = 0.164_687_5;

/// 2^-9.
const SMALLEST_SCALE: f32 = 0.001_953_125;

/// The sign flips of a transform: bit `i` of the first word is that of element `i`.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Signs {
    w0: u32,
    w1: u32,
    w2: u32,
    w3: u32,
}

/// The vector of a unit, and which of its groups the unit has.
#[derive(CubeType, Clone, Copy)]
struct Member {
    vector: u32,
    member: u32,
}

#[cube]
fn member(#[comptime] access: Access) -> Member {
    if comptime!(matches!(access.along, Contraction::Columns)) {
        Member {
            vector: UNIT_POS / MEMBERS,
            member: UNIT_POS % MEMBERS,
        }
    } else {
        Member {
            vector: UNIT_POS % GROUP,
            member: UNIT_POS / GROUP,
        }
    }
}

/// Where element 0 of a group is in shared memory.
#[cube]
fn offset(vector: u32, member: u32) -> usize {
    (vector * MEMBERS + member) as usize * APART
}

/// Rotates the vectors of a cube; each unit has its group in `values`, before and after.
#[cube]
fn rotate(values: &mut Array<f32>, shared: &mut SharedMemory<f32>, signs: &Signs, own: Member) {
    let pair = own.member / 2u32;
    let low = select(pair == 0u32, signs.w0, signs.w1);
    let high = select(pair == 2u32, signs.w2, signs.w3);
    let flips = select(pair < 2u32, low, high) >> (own.member % 2u32 * 16u32);
    #[unroll]
    for i in 0..16usize {
        let flip = (flips << comptime!(31 - small(i))) & 0x8000_0000u32;
        values[i] = f32::reinterpret(u32::reinterpret(values[i]) ^ flip);
    }
    #[unroll]
    for log_stride in 0..4usize {
        let stride = comptime!(1usize << log_stride);
        #[unroll]
        for i in 0..16usize {
            if comptime!(i & stride == 0) {
                let (low, high) = (values[i], values[i + stride]);
                values[i] = low + high;
                values[i + stride] = low - high;
            }
        }
    }
    let start = offset(own.vector, own.member);
    #[unroll]
    for i in 0..16usize {
        shared[start + i] = values[i];
    }
    sync_cube();
    // Two columns of the eight groups to a unit.
    #[unroll]
    for column in 0..2usize {
        let first = offset(own.vector, 0u32) + own.member as usize * 2 + column;
        let mut across = Array::<f32>::new(8usize);
        #[unroll]
        for m in 0..8usize {
            across[m] = shared[first + m * APART];
        }
        #[unroll]
        for log_stride in 0..3usize {
            let stride = comptime!(1usize << log_stride);
            #[unroll]
            for m in 0..8usize {
                if comptime!(m & stride == 0) {
                    let (low, high) = (across[m], across[m + stride]);
                    across[m] = low + high;
                    across[m + stride] = low - high;
                }
            }
        }
        #[unroll]
        for m in 0..8usize {
            shared[first + m * APART] = across[m];
        }
    }
    sync_cube();
    #[unroll]
    for i in 0..16usize {
        values[i] = shared[start + i] * NORM;
    }
    // The next writer waits until everybody has read.
    sync_cube();
}

/// Partial maxima behind the transform, and of the tensor itself if it is watched.
#[cube(launch_unchecked, address_type = "dynamic")]
fn rotated_amax<F: Float, N: Size>(
    source: &Array<Vector<F, N>>,
    geometry: Geometry,
    partials: &mut Array<u32>,
    signs: Signs,
    cubes: u32,
    #[comptime] access: Access,
    #[comptime] watched: bool,
    #[define(F)] _source_dtype: StorageType,
) {
    let mut exchange = SharedMemory::<f32>::new(comptime!(UNITS as usize * APART));
    let mut shared = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    let own = member(access);
    let mut rotated = 0u32.runtime();
    let mut largest = 0u32.runtime();
    let mut tile = u32::cast_from(CUBE_POS);
    let mut tiles = tile_walk(cubes, &geometry);
    while tile < geometry.tiles_across * geometry.tiles_down {
        let here = place(tiles.down, tiles.across, 0u32, access);
        let mut values = Array::<f32>::new(16usize);
        load::<F, N>(source, &mut values, here, &geometry, access);
        if comptime!(watched) {
            #[unroll]
            for i in 0..16usize {
                largest = u32::max(largest, u32::reinterpret(values[i]) & MAGNITUDE);
            }
        }
        rotate(&mut values, &mut exchange, &signs, own);
        let amax = group_amax(&values, 0usize, comptime!(access.arithmetic));
        rotated = u32::max(rotated, u32::reinterpret(amax));
        tile += cubes;
        advance(&mut tiles, &geometry);
    }
    write_partial(rotated, partials, cubes, &mut shared, Slot::Columns, UNITS);
    if comptime!(watched) {
        write_partial(largest, partials, cubes, &mut shared, Slot::Watch, UNITS);
    }
}

/// One job.
#[cube(launch_unchecked, address_type = "dynamic")]
fn quantize_eden<F: Float, N: Size, S: Numeric, NC: Size, D: Float, ND: Size>(
    source: &Array<Vector<F, N>>,
    geometry: Geometry,
    partials: &ComptimeOption<Array<u32>>,
    signs: Signs,
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
    let mut exchange = SharedMemory::<f32>::new(comptime!(UNITS as usize * APART));
    let mut shared = SharedMemory::<u32>::new(comptime!(UNITS as usize));
    // No amax is given to this kernel, so that nothing is read in its place.
    let level = start(partials, partials, &arguments, outputs, &mut shared, plan);
    write_alpha(level.amax, alpha);
    report(partials, &arguments, watch, &mut shared, UNITS);
    let own = member(plan.access);
    let mut tile = u32::cast_from(CUBE_POS);
    let mut tiles = tile_walk(cubes, &geometry);
    while tile < geometry.tiles_across * geometry.tiles_down {
        let here = place(tiles.down, tiles.across, 0u32, plan.access);
        let mut values = Array::<f32>::new(16usize);
        load::<F, N>(source, &mut values, here, &geometry, plan.access);
        rotate(&mut values, &mut exchange, &signs, own);
        let index = here.row * arguments.groups + here.group;
        let scale = scale_of_group(
            &values,
            &mut exchange,
            &level,
            &arguments,
            own,
            index,
            comptime!(plan.access.arithmetic),
        );
        let packed_rows = if comptime!(plan.is_along_columns()) {
            geometry.rows
        } else {
            geometry.cols
        };
        let exists = here.row < packed_rows && here.group < arguments.groups;
        finish::<S, NC, D, ND>(
            &mut values,
            scale,
            here,
            exists,
            outputs,
            &level,
            &arguments,
            0usize,
            plan,
        );
        store_decoded::<S, NC, D, ND>(&values, here, exists, outputs, &arguments, &geometry, plan);
        tile += cubes;
        advance(&mut tiles, &geometry);
    }
}

/// The scales of a group: encode before the correction of its vector, decode and byte after it.
#[cube]
fn scale_of_group(
    values: &Array<f32>,
    shared: &mut SharedMemory<f32>,
    level: &TensorLevel,
    arguments: &Arguments,
    own: Member,
    index: u32,
    #[comptime] arithmetic: Arithmetic,
) -> BlockScale {
    let amax = group_amax(values, 0usize, arithmetic);
    let rounded = round_e4m3(amax * (level.encode * EDEN_PART), arithmetic);
    let scale = select(rounded.byte == 0u32, SMALLEST_SCALE, rounded.value);
    let encode = block_encode_scale(scale, level, arithmetic);
    let mut norm = 0.0f32;
    let mut overlap = 0.0f32;
    #[unroll]
    for i in 0..16usize {
        let y = rounded_product(values[i], encode, arguments.zero);
        let q = round_rne(saturate(y, arithmetic), arithmetic);
        norm += rounded_product(y, y, arguments.zero);
        overlap += rounded_product(y, q, arguments.zero);
    }
    let start = offset(own.vector, own.member);
    // Sums in units of the group's own scale, brought to those of the tensor.
    let weight = scale * scale;
    shared[start] = rounded_product(norm, weight, arguments.zero);
    shared[start + 1] = rounded_product(overlap, weight, arguments.zero);
    sync_cube();
    let first = offset(own.vector, 0u32);
    let norm = tree_sum(shared, first);
    let overlap = tree_sum(shared, first + 1);
    sync_cube();
    let ratio = divide(norm, overlap, arithmetic);
    // Positive and finite; anything else is no correction.
    let says_something = u32::reinterpret(ratio) - 1u32 < comptime!(INFINITY - 1);
    let corrected = scale * select(says_something, ratio, 1.0f32);
    let random = block_bytes(&arguments.key, level.amax, index).w0;
    let byte = encode_stochastic(corrected, random);
    BlockScale {
        byte,
        decode: decode_e4m3(byte),
        encode,
    }
}

/// The sum over the groups of a vector, as a tree.
#[cube]
fn tree_sum(shared: &SharedMemory<f32>, first: usize) -> f32 {
    let mut sums = Array::<f32>::new(8usize);
    #[unroll]
    for m in 0..8usize {
        sums[m] = shared[first + m * APART];
    }
    #[unroll]
    for step in 0..3usize {
        let half = comptime!(4usize >> step);
        #[unroll]
        for m in 0..comptime!(4usize >> step) {
            sums[m] += sums[m + half];
        }
    }
    sums[0]
}

/// How an MS-EDEN job walks over its source.
struct EdenWalk<'a, R: CubeRuntime> {
    source: &'a Source<R>,
    task: &'a Task,
    access: Access,
    /// Vector width of reads.
    width: usize,
    tiles: [usize; 2],
}

impl<'a, R: CubeRuntime> EdenWalk<'a, R> {
    fn new(source: &'a Source<R>, task: &'a Task) -> Self {
        let arithmetic = Arithmetic::of::<R>(&source.tensor.client);
        let (rows, cols) = match task.along {
            Contraction::Columns => (GROUP, GROUP * MEMBERS),
            Contraction::Rows => (GROUP * MEMBERS, GROUP),
        };
        let tiling = Tiling {
            units: UNITS,
            rows,
            cols,
        };
        let width = match task.along {
            Contraction::Columns => source.columns_width(),
            Contraction::Rows => 1,
        };
        let covered = task.covered();
        Self {
            source,
            task,
            access: Access {
                width: 1,
                ..source.access(task.along, tiling, arithmetic)
            },
            width,
            tiles: [
                covered[0].div_ceil(rows as usize),
                covered[1].div_ceil(cols as usize),
            ],
        }
    }

    fn geometry(&self) -> GeometryLaunch<R> {
        let [down, across] = self.tiles.map(word);
        GeometryLaunch::new(
            word(self.source.rows),
            word(self.source.cols),
            word(self.source.stride() / self.width),
            across,
            down,
        )
    }

    fn cubes(&self, per_sm: u32) -> u32 {
        let tiles = word(self.tiles[0] * self.tiles[1]);
        cubes(&self.source.tensor.client, tiles, per_sm)
    }

    /// The amax behind the transform, as partial maxima.
    fn partials(&self, watched: bool) -> Partials<R> {
        let tensor = &self.source.tensor;
        let cubes = self.cubes(8);
        let partials = empty_device_contiguous_dtype(
            tensor.client.clone(),
            tensor.device.clone(),
            Shape::new([SLOTS, cubes as usize]),
            DType::U32,
        );
        // SAFETY: units beyond the source read nothing (`load` compares with the geometry, which is
        // that of the buffer), and each cube writes its own column of the partial maxima.
        unsafe {
            crate::kernels::count_launch();
            rotated_amax::launch_unchecked::<R>(
                &tensor.client,
                CubeCount::new_1d(cubes),
                CubeDim::new_1d(UNITS),
                crate::kernels::source::address_type(&[tensor]),
                self.width,
                array(tensor),
                self.geometry(),
                array(&partials),
                signs(&self.task.job.key),
                cubes,
                self.access,
                watched,
                tensor.dtype.into(),
            );
        }
        Partials {
            tensor: partials,
            cubes,
        }
    }
}

fn signs<R: CubeRuntime>(key: &RandomKey) -> SignsLaunch<R> {
    let [w0, w1, w2, w3] = key.signs();
    SignsLaunch::new(w0, w1, w2, w3)
}

/// Runs a job whose operand is not empty.
pub(super) fn run<R: CubeRuntime>(
    task: &Task,
    source: &Source<R>,
    watch: Option<&Watch<R>>,
    other: Option<&OperandScale<R>>,
) -> Quantized<R> {
    let walk = EdenWalk::new(source, task);
    let partials = walk.partials(watch.is_some());
    let memory = Memory::new(source, task);
    let alpha = other.and_then(|other| task.pending_alpha(source, other));
    let [codes_width, decoded_width] = memory.widths(task, source);
    let decoded_width = match task.along {
        Contraction::Columns => decoded_width,
        Contraction::Rows => 1,
    };
    let dtypes = memory.dtypes();
    let cubes = walk.cubes(task.cubes_per_sm());
    let client = &source.tensor.client;
    let plan = Plan {
        access: walk.access,
        ..task.plan(source, walk.access.tiling)
    };
    // SAFETY: as in `Task::run_alone`; the shared memory has a place for each element of a cube.
    unsafe {
        crate::kernels::count_launch();
        quantize_eden::launch_unchecked::<R>(
            client,
            CubeCount::new_1d(cubes),
            CubeDim::new_1d(UNITS),
            memory.address_type(source),
            walk.width,
            codes_width,
            decoded_width,
            array(&source.tensor),
            walk.geometry(),
            optional(Some(&partials.tensor)),
            signs(&task.job.key),
            task.arguments(Some(&partials)),
            memory.outputs(),
            watch_argument(watch),
            alpha::argument(alpha.as_ref()),
            cubes,
            plan,
            source.tensor.dtype.into(),
            dtypes[0].into(),
            dtypes[1].into(),
        );
    }
    Quantized {
        alpha: alpha.map(Pending::into_alpha),
        ..memory.into_quantized(task, source, None)
    }
}
