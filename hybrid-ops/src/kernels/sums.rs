//! Sums without atomics: over the units of a cube, and over the partial sums that cubes left.
//!
//! Every sum has one order whatever runs first, so two runs give the same bits.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::client::ComputeClient;
use cubecl::ir::StorageType;
use cubecl::ir::features::Plane;
use cubecl::prelude::*;

use super::elementwise::empty;

/// Units of a cube that sums columns, side by side and below one another.
pub(super) const LANES: u32 = 32;
pub(super) const DEPTH: u32 = 8;

/// Streaming multiprocessors of a device that does not say how many it has.
const MULTIPROCESSORS: u32 = 16;

/// How the units of a cube add up; known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Team {
    /// Units of the cube, a power of two.
    pub(super) units: u32,
    /// Units that add up without shared memory, if the device has a fixed number of them.
    plane: Option<u32>,
}

impl Team {
    /// A cube with at least one unit for each of `units` pieces of work if it may have so many, and
    /// at most `most`.
    pub(super) fn new<R: CubeRuntime>(client: &ComputeClient<R>, units: usize, most: u32) -> Self {
        let properties = client.properties();
        let hardware = &properties.hardware;
        let has_planes = properties.features.plane.contains(Plane::Ops)
            && hardware.plane_size_min == hardware.plane_size_max
            && hardware.plane_size_min.is_power_of_two();
        let plane = has_planes.then_some(hardware.plane_size_min);
        let most = most.min(hardware.max_units_per_cube);
        let most = if most.is_power_of_two() {
            most
        } else {
            most.next_power_of_two() / 2
        };
        let least = plane.unwrap_or(LANES).min(most);
        let units = u32::try_from(units).unwrap_or(most).clamp(least, most);
        Self {
            units: units.next_power_of_two(),
            plane: plane.filter(|plane| *plane <= most),
        }
    }
}

/// Multiprocessors of the device.
pub(super) fn multiprocessors<R: CubeRuntime>(client: &ComputeClient<R>) -> u32 {
    let hardware = &client.properties().hardware;
    hardware
        .num_streaming_multiprocessors
        .unwrap_or(MULTIPROCESSORS)
}

/// The sum of one number per unit, in every unit; `shared` has as many numbers as the cube units.
#[cube]
pub(super) fn cube_sum(value: f32, shared: &mut SharedMemory<f32>, #[comptime] team: Team) -> f32 {
    if comptime!(team.plane.is_some()) {
        let plane = comptime!(team.plane.unwrap_or(1));
        let planes = comptime!((team.units / plane) as usize);
        let mut sum = plane_sum(value);
        if comptime!(planes > 1) {
            if UNIT_POS_PLANE == 0 {
                shared[(UNIT_POS / plane) as usize] = sum;
            }
            sync_cube();
            sum = 0.0f32;
            #[unroll]
            for i in 0..planes {
                sum += shared[i];
            }
            // The next writer waits until everybody has read.
            sync_cube();
        }
        sum
    } else {
        shared[UNIT_POS as usize] = value;
        sync_cube();
        #[unroll]
        for step in 1..comptime!(team.units.trailing_zeros() + 1) {
            let half = comptime!(team.units >> step);
            if UNIT_POS < half {
                shared[UNIT_POS as usize] += shared[(UNIT_POS + half) as usize];
            }
            sync_cube();
        }
        let sum = shared[0];
        sync_cube();
        sum
    }
}

/// The sum over the elements of a vector.
#[cube]
pub(super) fn vector_sum<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = vector[0];
    #[unroll]
    for i in 1..vector.vector_size() {
        sum += vector[i];
    }
    sum
}

/// The sum over the depth of a cube of `LANES` by `DEPTH` units; right in the units of depth 0.
#[cube]
pub(super) fn depth_sum<N: Size>(
    value: Vector<f32, N>,
    shared: &mut SharedMemory<Vector<f32, N>>,
) -> Vector<f32, N> {
    shared[UNIT_POS as usize] = value;
    sync_cube();
    let mut sum = value;
    if UNIT_POS < LANES {
        #[unroll]
        for depth in 1..comptime!(DEPTH as usize) {
            sum += shared[comptime!(depth * LANES as usize) + UNIT_POS as usize];
        }
    }
    sync_cube();
    sum
}

/// One column for each lane.
#[cube(launch_unchecked)]
fn column_sums_kernel<O: Float>(
    partials: &Array<f32>,
    out: &mut Array<O>,
    rows: usize,
    stride: usize,
    start: usize,
    #[define(O)] _dtype: StorageType,
) {
    let mut shared =
        SharedMemory::<Vector<f32, Const<1>>>::new(comptime!((LANES * DEPTH) as usize));
    let column = CUBE_POS * comptime!(LANES as usize) + (UNIT_POS % LANES) as usize;
    let mut sum = 0.0f32;
    if column < out.len() {
        let mut row = (UNIT_POS / LANES) as usize;
        while row < rows {
            sum += partials[row * stride + start + column];
            row += comptime!(DEPTH as usize);
        }
    }
    let total = depth_sum::<Const<1>>(Vector::new(sum), &mut shared);
    if UNIT_POS < LANES && column < out.len() {
        out[column] = O::cast_from(total[0]);
    }
}

/// Sums of the columns `start..start + out len` of partial sums, f32 `[rows, stride]`.
pub(super) fn column_sums<R: CubeRuntime>(
    partials: &CubeTensor<R>,
    start: usize,
    out: CubeTensor<R>,
) -> CubeTensor<R> {
    let [rows, stride] = partials.meta.shape().dims();
    let columns = out.meta.num_elements();
    assert!(start + columns <= stride, "columns of partial sums");
    count_launch();
    // SAFETY: the columns exist, and units beyond them neither read nor write.
    unsafe {
        column_sums_kernel::launch_unchecked::<R>(
            &partials.client,
            CubeCount::new_1d(word(columns.div_ceil(LANES as usize))),
            CubeDim::new_1d(LANES * DEPTH),
            partials.clone().into_array_arg(),
            out.clone().into_array_arg(),
            rows,
            stride,
            start,
            out.dtype.into(),
        );
    }
    out
}

#[cube(launch_unchecked)]
fn total_kernel(
    partials: &Array<f32>,
    out: &mut Array<f32>,
    len: usize,
    factor: f32,
    #[comptime] team: Team,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(team.units as usize));
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < len {
        sum += partials[i];
        i += comptime!(team.units as usize);
    }
    let sum = cube_sum(sum, &mut shared, team);
    if UNIT_POS == 0 {
        out[0] = sum * factor;
    }
}

/// The sum of f32 partial sums times `factor`, `[1]`.
pub(super) fn total<R: CubeRuntime>(partials: &CubeTensor<R>, factor: f32) -> CubeTensor<R> {
    let out = empty(partials, [1], DType::F32);
    let len = partials.meta.num_elements();
    let team = Team::new(&partials.client, len, 1024);
    count_launch();
    // SAFETY: one cube, which reads `len` numbers and writes one.
    unsafe {
        total_kernel::launch_unchecked::<R>(
            &partials.client,
            CubeCount::new_single(),
            CubeDim::new_1d(team.units),
            partials.clone().into_array_arg(),
            out.clone().into_array_arg(),
            len,
            factor,
            team,
        );
    }
    out
}

/// A length as the number of a cube.
pub(super) fn word(length: usize) -> u32 {
    u32::try_from(length).expect("rows and channels of a tensor are counted in 32 bits")
}
