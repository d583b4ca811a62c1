//! Which kernels run for a tensor, and their launches.

use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::eden;
use super::job::{Job, Packing, Quantized, Watch, packs_either_axis};
use super::memory::Memory;
use super::{
    AmaxSource, ArgumentsLaunch, Codes, Plan, Results, Scales, WatchOutputLaunch, quantize_one,
    quantize_two,
};
use crate::cpu::Contraction;
use crate::format::scale::{FP8_Q_MAX, NVFP4_Q_MAX, NVFP4_Q_MAX_256};
use crate::format::{BlockShape, Format, Fp8Scaling, e2m1, e4m3};
use crate::kernels::alpha::{self, OperandScale, Pending};
use crate::kernels::amax::{Partials, Plain, Slot, Wanted, launch_partials, launch_regions};
use crate::kernels::arithmetic::Arithmetic;
use crate::kernels::four_over_six::ErrorRule;
use crate::kernels::group::{GROUP, Tiling};
use crate::kernels::philox::KeyWordsLaunch;
use crate::kernels::source::{Source, TileShape, array, cubes, optional, word};
use crate::recipe::{OperandSpec, Rounding, ScaleBound, ScaleRule, SignVector, Transform};
use crate::rng::RandomKey;

/// Quantizes a tensor for one GEMM or two.
///
/// Without a tensor amax in any job one launch; else two, the amax included; row amaxes and FP8
/// blocks add one. The layouts of both results follow the memory of `x`: nothing is transposed.
///
/// # Shapes
/// `x`: f32, bf16 or f16, any rank and strides; leading dims are flattened to rows.
///
/// # Panics
/// If there are no jobs or more than two, if a spec is high precision or its parts do not go
/// together, or if rows, columns or groups cannot be counted in 32 bits.
pub fn quantize<R: CubeRuntime>(
    x: &CubeTensor<R>,
    jobs: &[Job],
    watch: Option<&Watch<R>>,
) -> Vec<Quantized<R>> {
    quantize_for(x, jobs, watch, None)
}

/// [`quantize`], where the GEMM of the first job has its other operand already: the factor of the
/// two comes from the same launch.
///
/// # Panics
/// As [`quantize`].
pub fn quantize_for<R: CubeRuntime>(
    x: &CubeTensor<R>,
    jobs: &[Job],
    watch: Option<&Watch<R>>,
    other: Option<&OperandScale<R>>,
) -> Vec<Quantized<R>> {
    let own = vec![None; jobs.len()];
    quantize_under(x, jobs, &own, watch, other)
}

/// [`quantize_for`], where a job may be under an amax that is there already, f32 `[1]`, instead of
/// that of the tensor: what lies beyond it is cut off. It takes no launch.
///
/// # Panics
/// As [`quantize`], and if such a job has no scale for the tensor, or EDEN scales.
pub fn quantize_under<R: CubeRuntime>(
    x: &CubeTensor<R>,
    jobs: &[Job],
    amaxes: &[Option<CubeTensor<R>>],
    watch: Option<&Watch<R>>,
    other: Option<&OperandScale<R>>,
) -> Vec<Quantized<R>> {
    let source = Source::new(x);
    let task = |job: &Job, amax: Option<&CubeTensor<R>>| {
        let task = Task::new(&source, job);
        if amax.is_some() {
            task.under_a_given_amax()
        } else {
            task
        }
    };
    match (jobs, amaxes) {
        ([job], [amax]) => {
            let amax = amax.as_ref();
            vec![task(job, amax).run_alone(&source, amax, watch, other)]
        }
        ([a, b], [amax_a, amax_b]) => {
            let (amax_a, amax_b) = (amax_a.as_ref(), amax_b.as_ref());
            let (a, b) = (task(a, amax_a), task(b, amax_b));
            if a.goes_with(&b) {
                run_both(&source, [(&a, amax_a), (&b, amax_b)], watch, other)
            } else {
                vec![
                    a.run_alone(&source, amax_a, watch, other),
                    b.run_alone(&source, amax_b, None, None),
                ]
            }
        }
        _ => panic!(
            "a tensor is quantized for one GEMM or two, not {}",
            jobs.len()
        ),
    }
}

/// A job, brought to the source's orientation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task {
    pub(super) job: Job,
    /// The axis of the source that the GEMM sums over.
    pub(super) asked: Contraction,
    /// The axis of the source that is quantized along.
    pub(super) along: Contraction,
    pub(super) format: Format,
    /// Of the packed operand.
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) padded_k: usize,
    pub(super) codes: Codes,
    pub(super) scales: Scales,
    pub(super) amax: AmaxSource,
    pub(super) signs: Option<u16>,
    pub(super) q_max: f32,
}

impl Task {
    fn new<R: CubeRuntime>(source: &Source<R>, job: &Job) -> Self {
        if let Some(reason) = job.spec.conflict() {
            panic!("{reason}");
        }
        let asked = source.along(job.along);
        let signs = match job.spec.transform() {
            // Random signs are an argument of their kernel.
            Transform::None | Transform::RandomHadamard => None,
            Transform::Hadamard {
                signs: SignVector(signs),
            } => Some(signs),
        };
        let codes = match job.spec.rounding() {
            Some(Rounding::NearestEven) => Codes::E2m1Nearest,
            Some(Rounding::Stochastic) => Codes::E2m1Stochastic,
            None => Codes::E4m3,
        };
        let square = packs_either_axis(&job.spec) && job.packing != Packing::AskedAxis;
        let along = if square { Contraction::Columns } else { asked };
        let slot = match (job.spec.transform(), along) {
            (Transform::None, _) => Slot::Plain,
            (Transform::Hadamard { .. }, Contraction::Columns) | (Transform::RandomHadamard, _) => {
                Slot::Columns
            }
            (Transform::Hadamard { .. }, Contraction::Rows) => Slot::Rows,
        };
        let tensor = AmaxSource::Partials(slot);
        let (format, scales, amax, q_max) = match job.spec {
            OperandSpec::HighPrecision => panic!("a high-precision operand is not quantized"),
            OperandSpec::Nvfp4 { block, scale, .. } => {
                let (scales, amax, q_max) = match scale {
                    ScaleRule::Tensor => (Scales::Nvfp4, tensor, NVFP4_Q_MAX),
                    ScaleRule::Row => (Scales::Nvfp4, AmaxSource::Rows, NVFP4_Q_MAX),
                    ScaleRule::Eden => (Scales::Eden, tensor, NVFP4_Q_MAX_256),
                    ScaleRule::FourOverSix {
                        bound,
                        error,
                        arithmetic,
                    } => {
                        let q_max = match bound {
                            ScaleBound::E4m3At256 => NVFP4_Q_MAX_256,
                            ScaleBound::E4m3At448 => NVFP4_Q_MAX,
                        };
                        let rule = ErrorRule { error, arithmetic };
                        (Scales::FourOverSix(rule), tensor, q_max)
                    }
                };
                (Format::Nvfp4 { block }, scales, amax, q_max)
            }
            OperandSpec::Mxfp4 { scale: rule, .. } => {
                // Only the random key asks for an amax.
                let amax = match codes {
                    Codes::E2m1Stochastic => tensor,
                    Codes::E2m1Nearest | Codes::E4m3 => AmaxSource::None,
                };
                let element_max = e2m1::MAX.to_bits();
                (Format::Mxfp4, Scales::Mx { rule, element_max }, amax, 1.0)
            }
            OperandSpec::Mxfp8 { scale: rule } => {
                let element_max = e4m3::MAX.to_bits();
                let scales = Scales::Mx { rule, element_max };
                (Format::Mxfp8, scales, AmaxSource::None, 1.0)
            }
            OperandSpec::Fp8 { scaling } => {
                let (scales, amax) = match scaling {
                    Fp8Scaling::Tensor => (Scales::Fp8Tensor, tensor),
                    Fp8Scaling::Row128 | Fp8Scaling::Tile128x128 => {
                        (Scales::Fp8Block, AmaxSource::Blocks)
                    }
                };
                (Format::Fp8 { scaling }, scales, amax, FP8_Q_MAX)
            }
        };
        let (rows, k) = match along {
            Contraction::Columns => (source.rows, source.cols),
            Contraction::Rows => (source.cols, source.rows),
        };
        let k = job.spec.packed_k(k);
        Self {
            job: *job,
            asked,
            along,
            format,
            rows,
            k,
            padded_k: k.next_multiple_of(format.block_len().max(GROUP as usize)),
            codes,
            scales,
            amax,
            signs,
            q_max,
        }
    }

    /// The same job under an amax that is handed in.
    fn under_a_given_amax(self) -> Self {
        assert!(
            self.job.spec.has_renewable_scale(),
            "only an operand with one scale for the tensor can be given its amax"
        );
        Self {
            amax: AmaxSource::Given,
            ..self
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows * self.k == 0
    }

    pub(super) fn packed(&self) -> bool {
        self.job.packing != Packing::None
    }

    /// Whether two jobs can share their launches.
    fn goes_with(&self, other: &Self) -> bool {
        let apart = self.scales == Scales::Eden || other.scales == Scales::Eden;
        let same_slot = self.along == other.along && self.signs != other.signs;
        let both_rotated = self.signs.is_some() && other.signs.is_some();
        !(self.is_empty() || apart || same_slot && both_rotated)
    }

    /// Adds what this job needs to what one launch takes.
    fn want(&self, wanted: &mut Wanted) {
        match self.amax {
            AmaxSource::Partials(Slot::Plain) => wanted.plain = wanted.plain.max(Plain::Amax),
            AmaxSource::Partials(Slot::Columns) => wanted.columns = self.signs,
            AmaxSource::Partials(Slot::Rows) => wanted.rows = self.signs,
            AmaxSource::Partials(Slot::Watch)
            | AmaxSource::None
            | AmaxSource::Given
            | AmaxSource::Rows
            | AmaxSource::Blocks => {}
        }
    }

    /// Rows and length of a block.
    pub(super) fn block(&self) -> [usize; 2] {
        let block = self.format.block_dims();
        [block.rows, block.k.max(GROUP as usize)]
    }

    /// Row or block amaxes, by a launch of their own; or the one that is given.
    fn regions<R: CubeRuntime>(
        &self,
        source: &Source<R>,
        given: Option<&CubeTensor<R>>,
    ) -> Option<CubeTensor<R>> {
        let [rows, k] = match self.amax {
            AmaxSource::None | AmaxSource::Partials(_) => return None,
            AmaxSource::Given => return given.cloned(),
            AmaxSource::Rows => [1, self.k],
            AmaxSource::Blocks => self.block(),
        };
        let region = match self.along {
            Contraction::Columns => [rows, k],
            Contraction::Rows => [k, rows],
        };
        let arithmetic = Arithmetic::of::<R>(&source.tensor.client);
        Some(launch_regions(source, region, self.along, arithmetic))
    }

    /// Rows and columns of the source that the groups of this job cover.
    pub(super) fn covered(&self) -> [usize; 2] {
        match self.along {
            Contraction::Columns => [self.rows, self.padded_k],
            Contraction::Rows => [self.padded_k, self.rows],
        }
    }

    /// Length of the contraction axis of the decoded operand.
    pub(super) fn decoded_k(&self) -> usize {
        // A transform mixes the padding of its last sixteen elements with the others.
        if self.signs.is_some() {
            self.padded_k
        } else {
            self.k
        }
    }

    fn tile_shape(&self) -> TileShape {
        match (self.along, self.format) {
            (Contraction::Rows, _) => TileShape::Square,
            (
                Contraction::Columns,
                Format::Nvfp4 {
                    block: BlockShape::Tile16x16,
                },
            ) => TileShape::Blocks,
            (
                Contraction::Columns,
                Format::Nvfp4 {
                    block: BlockShape::Row16,
                }
                | Format::Mxfp4
                | Format::Mxfp8
                | Format::Fp8 { .. },
            ) => TileShape::Lines,
        }
    }

    pub(super) fn plan<R: CubeRuntime>(&self, source: &Source<R>, tiling: Tiling) -> Plan {
        let arithmetic = Arithmetic::of::<R>(&source.tensor.client);
        let [rows, k] = self.block();
        Plan {
            access: source.access(self.along, tiling, arithmetic),
            codes: self.codes,
            scales: self.scales,
            amax: self.amax,
            signs: self.signs,
            block_rows: word(rows),
            block_groups: word(k) / GROUP,
            results: match (self.packed(), self.job.decoded) {
                (true, None) => Results::Packed,
                (true, Some(_)) => Results::Both,
                (false, _) => Results::Decoded,
            },
        }
    }

    pub(super) fn arguments<R: CubeRuntime>(
        &self,
        partials: Option<&Partials<R>>,
    ) -> ArgumentsLaunch<R> {
        ArgumentsLaunch::new(
            word(self.padded_k) / GROUP,
            word(self.decoded_k()),
            self.q_max,
            key_words(&self.job.key),
            0,
            partials.map_or(0, |partials| partials.cubes),
        )
    }

    fn run_alone<R: CubeRuntime>(
        &self,
        source: &Source<R>,
        given: Option<&CubeTensor<R>>,
        watch: Option<&Watch<R>>,
        other: Option<&OperandScale<R>>,
    ) -> Quantized<R> {
        if self.is_empty() {
            return Memory::new(source, self).into_quantized(self, source, given.cloned());
        }
        if self.scales == Scales::Eden {
            return eden::run(self, source, watch, other);
        }
        let mut wanted = watched(watch);
        self.want(&mut wanted);
        let tiling = source.tiling(self.tile_shape());
        let plan = self.plan(source, tiling);
        let partials = launch_partials(source, wanted, plan.access.arithmetic);
        let regions = self.regions(source, given);
        let memory = Memory::new(source, self);
        let alpha = other.and_then(|other| self.pending_alpha(source, other));
        let (width, input) = source.argument(self.along);
        let (geometry, tiles) = source.geometry(self.along, tiling, self.covered());
        let client = &source.tensor.client;
        let cubes = cubes(client, tiles, cubes_per_sm(&[self]));
        let (shapes, dtypes) = (memory.widths(self, source), memory.dtypes());
        // SAFETY: units beyond the source read nothing, and groups beyond the packed operand write
        // nothing: `geometry` and `arguments` hold the sizes that the buffers were made with.
        unsafe {
            crate::kernels::count_launch();
            quantize_one::launch_unchecked::<R>(
                client,
                CubeCount::new_1d(cubes),
                CubeDim::new_1d(tiling.units),
                memory.address_type(source),
                width,
                shapes[0],
                shapes[1],
                input,
                geometry,
                optional(partials.as_ref().map(|partials| &partials.tensor)),
                optional(regions.as_ref()),
                self.arguments(partials.as_ref()),
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
            ..memory.into_quantized(self, source, regions)
        }
    }

    /// The factor of this operand and another one, unless rows have scales of their own.
    pub(super) fn pending_alpha<R: CubeRuntime>(
        &self,
        source: &Source<R>,
        other: &OperandScale<R>,
    ) -> Option<Pending<R>> {
        let has_scale = self.has_tensor_scale();
        let q_max = if has_scale { self.q_max } else { 1.0 };
        let single = self.amax != AmaxSource::Rows;
        let pending = || Pending::new(&source.tensor, has_scale, q_max, other);
        single.then(pending).flatten()
    }
}

/// Cubes for each multiprocessor.
///
/// Codes are a quarter of what is read: many cubes, so that the last ones to run leave no gap.
/// Decoded operands are as much as is read or more, and the memory of an H200 takes that up to a
/// third faster from few cubes.
fn cubes_per_sm(tasks: &[&Task]) -> u32 {
    let writes_decoded = tasks.iter().any(|task| task.job.decoded.is_some());
    if writes_decoded { 4 } else { 24 }
}

/// What a launch takes for the watch alone.
fn watched<R: CubeRuntime>(watch: Option<&Watch<R>>) -> Wanted {
    Wanted {
        plain: watch.map_or(Plain::Nothing, |_| Plain::Watched),
        ..Wanted::default()
    }
}

/// Both jobs in the same launches, each with the amax that it is given, if it is.
fn run_both<R: CubeRuntime>(
    source: &Source<R>,
    [(a, given_a), (b, given_b)]: [(&Task, Option<&CubeTensor<R>>); 2],
    watch: Option<&Watch<R>>,
    other: Option<&OperandScale<R>>,
) -> Vec<Quantized<R>> {
    let mut wanted = watched(watch);
    a.want(&mut wanted);
    b.want(&mut wanted);
    let tiling = source.tiling(a.tile_shape().max(b.tile_shape()));
    let (plan_a, plan_b) = (a.plan(source, tiling), b.plan(source, tiling));
    let partials = launch_partials(source, wanted, plan_a.access.arithmetic);
    let (regions_a, regions_b) = (a.regions(source, given_a), b.regions(source, given_b));
    let (memory_a, memory_b) = (Memory::new(source, a), Memory::new(source, b));
    let alpha = other.and_then(|other| a.pending_alpha(source, other));
    let (width_a, input_a) = source.argument(a.along);
    let (width_b, input_b) = source.argument(b.along);
    let (covered_a, covered_b) = (a.covered(), b.covered());
    let covered = [
        covered_a[0].max(covered_b[0]),
        covered_a[1].max(covered_b[1]),
    ];
    let (geometry_a, tiles) = source.geometry(a.along, tiling, covered);
    let (geometry_b, _) = source.geometry(b.along, tiling, covered);
    let client = &source.tensor.client;
    let cubes = cubes(client, tiles, cubes_per_sm(&[a, b]));
    let (shapes_a, shapes_b) = (memory_a.widths(a, source), memory_b.widths(b, source));
    let (dtypes_a, dtypes_b) = (memory_a.dtypes(), memory_b.dtypes());
    // SAFETY: as for one job.
    unsafe {
        crate::kernels::count_launch();
        quantize_two::launch_unchecked::<R>(
            client,
            CubeCount::new_1d(cubes),
            CubeDim::new_1d(tiling.units),
            memory_a
                .address_type(source)
                .max(memory_b.address_type(source)),
            width_a,
            shapes_a[0],
            shapes_a[1],
            width_b,
            shapes_b[0],
            shapes_b[1],
            input_a,
            geometry_a,
            optional(regions_a.as_ref()),
            a.arguments(partials.as_ref()),
            memory_a.outputs(),
            input_b,
            geometry_b,
            optional(regions_b.as_ref()),
            b.arguments(partials.as_ref()),
            memory_b.outputs(),
            optional(partials.as_ref().map(|partials| &partials.tensor)),
            watch_argument(watch),
            alpha::argument(alpha.as_ref()),
            cubes,
            plan_a,
            plan_b,
            source.tensor.dtype.into(),
            dtypes_a[0].into(),
            dtypes_a[1].into(),
            dtypes_b[0].into(),
            dtypes_b[1].into(),
        );
    }
    vec![
        Quantized {
            alpha: alpha.map(Pending::into_alpha),
            ..memory_a.into_quantized(a, source, regions_a)
        },
        memory_b.into_quantized(b, source, regions_b),
    ]
}

impl Task {
    /// As [`cubes_per_sm`] for this job alone.
    pub(super) fn cubes_per_sm(&self) -> u32 {
        cubes_per_sm(&[self])
    }

    pub(super) fn has_tensor_scale(&self) -> bool {
        match self.scales {
            Scales::Nvfp4 | Scales::FourOverSix(_) | Scales::Eden | Scales::Fp8Tensor => true,
            Scales::Mx { .. } | Scales::Fp8Block => false,
        }
    }
}

pub(super) fn watch_argument<R: CubeRuntime>(
    watch: Option<&Watch<R>>,
) -> ComptimeOptionArgs<super::WatchOutput, R> {
    match watch {
        Some(Watch { found, id }) => {
            ComptimeOptionArgs::Some(WatchOutputLaunch::new(array(found), *id))
        }
        None => ComptimeOptionArgs::None,
    }
}

fn key_words<R: CubeRuntime>(key: &RandomKey) -> KeyWordsLaunch<R> {
    let [seed_low, seed_high] = key.key_words();
    let [_, step_low, _, last] = key.counter(0.0, 0);
    KeyWordsLaunch::new(seed_low, seed_high, step_low, last)
}
