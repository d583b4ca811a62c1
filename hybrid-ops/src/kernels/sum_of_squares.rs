//! The sum of the squares of all gradients, on the device: what a global norm is the root of.
//!
//! Every tensor leaves partial sums in its own part of one buffer, and one cube adds them up, so the
//! sum has one order. Tensors that are work for one cube share launches.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::elementwise::{empty, vector_width};
use super::sums::{Team, cube_sum, multiprocessors, total, vector_sum, word};

/// Units of a cube, at most.
const MOST_UNITS: u32 = 256;

/// Tensors of a launch, at most.
const MOST_TENSORS: usize = 12;

/// Vectors of a unit before there are more cubes.
const VECTORS: usize = 8;

/// Cubes for each multiprocessor, at most.
const CUBES: u32 = 8;

#[cube(launch_unchecked, address_type = "dynamic")]
fn partial_kernel<F: Float, N: Size>(
    x: &Array<Vector<F, N>>,
    partials: &mut Array<f32>,
    len: usize,
    cubes: usize,
    first: usize,
    #[comptime] team: Team,
    #[define(F)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(team.units as usize));
    let mut squares = Vector::<f32, N>::zeroed();
    let mut i = ABSOLUTE_POS;
    while i < len {
        let x = Vector::<f32, N>::cast_from(x[i]);
        squares += x * x;
        i += cubes * comptime!(team.units as usize);
    }
    let sum = cube_sum(vector_sum::<N>(squares), &mut shared, team);
    if UNIT_POS == 0 {
        partials[first + CUBE_POS] = sum;
    }
}

/// A tensor of a shared launch.
#[derive(CubeType, CubeLaunch)]
struct Part<F: Float, N: Size> {
    x: Array<Vector<F, N>>,
    len: usize,
}

/// The `i`th cube works on the `i`th tensor.
#[cube(launch_unchecked)]
fn parts_kernel<F: Float, N: Size>(
    parts: &Sequence<Part<F, N>>,
    partials: &mut Array<f32>,
    first: usize,
    #[comptime] team: Team,
    #[define(F)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(team.units as usize));
    let mut squares = Vector::<f32, N>::zeroed();
    #[unroll]
    for part in 0..parts.len() {
        if CUBE_POS == part {
            let part = parts.index(part);
            let mut i = UNIT_POS as usize;
            while i < part.len {
                let x = Vector::<f32, N>::cast_from(part.x[i]);
                squares += x * x;
                i += comptime!(team.units as usize);
            }
        }
    }
    let sum = cube_sum(vector_sum::<N>(squares), &mut shared, team);
    if UNIT_POS == 0 {
        partials[first + CUBE_POS] = sum;
    }
}

/// A tensor in terms of its launch.
struct Job<R: CubeRuntime> {
    x: CubeTensor<R>,
    width: usize,
    team: Team,
    cubes: usize,
}

impl<R: CubeRuntime> Job<R> {
    fn new(x: &CubeTensor<R>) -> Self {
        let x = into_contiguous(x.clone());
        let len = x.meta.num_elements();
        let width = vector_width(len, &[&x]);
        let vectors = len / width;
        let team = Team::new(&x.client, vectors, MOST_UNITS);
        let most = (multiprocessors(&x.client) * CUBES) as usize;
        let cubes = vectors
            .div_ceil(team.units as usize * VECTORS)
            .clamp(1, most);
        Self {
            x,
            width,
            team,
            cubes,
        }
    }

    fn launch(self, partials: &CubeTensor<R>, first: usize) {
        let len = self.x.meta.num_elements() / self.width;
        let address_type = self.x.required_address_type();
        count_launch();
        // SAFETY: vectors beyond `len` are not read, and the partial sums from `first` on are those
        // of this tensor, one for each cube.
        unsafe {
            partial_kernel::launch_unchecked::<R>(
                &partials.client,
                CubeCount::new_1d(word(self.cubes)),
                CubeDim::new_1d(self.team.units),
                address_type,
                self.width,
                self.x.clone().into_array_arg(),
                partials.clone().into_array_arg(),
                len,
                self.cubes,
                first,
                self.team,
                self.x.dtype.into(),
            );
        }
    }
}

/// The sum of the squares of all elements, f32 `[1]` on the device; `None` if there is no element.
///
/// f32, f16 and bf16, summed in f32: always in the same order.
pub fn global<R: CubeRuntime>(grads: &[CubeTensor<R>]) -> Option<CubeTensor<R>> {
    let present = grads.iter().filter(|grad| grad.meta.num_elements() > 0);
    let jobs: Vec<_> = present.map(Job::new).collect();
    let like = jobs.first()?;
    let client = like.x.client.clone();
    let count = jobs.iter().map(|job| job.cubes).sum::<usize>();
    let partials = empty(&like.x, [count], DType::F32);
    let (mut small, large): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.cubes == 1);
    let mut first = 0;
    for job in large {
        let cubes = job.cubes;
        job.launch(&partials, first);
        first += cubes;
    }
    // Neighbours have one kernel; the order stays that of the tensors within it.
    small.sort_by_key(|job| (job.width, job.x.dtype.size(), job.team.units));
    // The partial sums, and what the runtime adds.
    let bindings = client.properties().hardware.max_bindings as usize;
    let most = bindings.saturating_sub(2).clamp(1, MOST_TENSORS);
    let kernel = |job: &Job<R>| (job.width, job.x.dtype, job.team);
    for alike in small.chunk_by(|a, b| kernel(a) == kernel(b)) {
        for together in alike.chunks(most) {
            launch_together(together, &partials, first);
            first += together.len();
        }
    }
    Some(total(&partials, 1.0))
}

/// Jobs of one cube each and one kernel.
fn launch_together<R: CubeRuntime>(jobs: &[Job<R>], partials: &CubeTensor<R>, first: usize) {
    let Some(Job { x, width, team, .. }) = jobs.first() else {
        return;
    };
    let parts = jobs.iter().map(|job| {
        let len = job.x.meta.num_elements() / width;
        PartLaunch::new(job.x.clone().into_array_arg(), len)
    });
    count_launch();
    // SAFETY: a cube reads vectors below the length of its tensor and writes its own partial sum.
    unsafe {
        parts_kernel::launch_unchecked::<R>(
            &x.client,
            CubeCount::new_1d(word(jobs.len())),
            CubeDim::new_1d(team.units),
            *width,
            parts.collect(),
            partials.clone().into_array_arg(),
            first,
            *team,
            x.dtype.into(),
        );
    }
}
