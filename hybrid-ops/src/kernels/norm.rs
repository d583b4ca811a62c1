//! Root-mean-square norms of segments of rows, with a gate or without, one pass over memory each
//! way.
//!
//! `u = x silu(z)` (or `u = x`), `y = u rstd weight`, `rstd = 1 / sqrt(mean(u^2) + eps)` over each of
//! the segments of a row. Backward: `dn = dy weight`, `du = rstd (dn - n mean(dn n))` with
//! `n = u rstd`, and from there through the gate.
//!
//! A cube has one segment and walks over rows; its units hold their part of a row in registers
//! between the sum and its use. So the gradient of the weight is a sum that each unit keeps, and a
//! cube leaves one partial sum behind.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::elementwise::empty;
use super::gate::{sigmoid, silu, silu_slope};
use super::sums::{Team, column_sums, cube_sum, multiprocessors, vector_sum, word};
use super::view::{Rows, RowsLaunch, View, address_type, common_width, row_start};

/// Units of a cube, at most: more would leave too few registers to each.
const MOST_UNITS: u32 = 512;

/// Units of a multiprocessor that hold parts of rows at the same time. Backward has few: each cube
/// leaves a partial sum of the weight's gradient.
const FORWARD_UNITS: u32 = 2048;
const BACKWARD_UNITS: u32 = 1024;

/// Who holds what of a segment; known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Holding {
    team: Team,
    /// Vectors of a unit.
    held: usize,
    /// Every unit has that many.
    is_whole: bool,
}

/// How cubes walk over rows.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Walk {
    rows: usize,
    /// Segments of a row.
    segments: usize,
    /// Vectors of a segment.
    vectors: usize,
    /// Cubes of a segment.
    cubes: usize,
    eps: f32,
    /// One over the elements of a segment.
    inverse_len: f32,
}

/// The `v`th vector of this unit in a segment.
#[cube]
fn place(#[comptime] v: usize, #[comptime] holding: Holding) -> usize {
    comptime!(v * holding.team.units as usize) + UNIT_POS as usize
}

/// True if the segment has this vector.
#[cube]
fn exists(place: usize, walk: &Walk, #[comptime] holding: Holding) -> bool {
    if comptime!(holding.is_whole) {
        true.runtime()
    } else {
        place < walk.vectors
    }
}

/// The weights of the vectors of a unit.
#[cube]
fn load_weights<N: Size>(
    weight: &Array<f32>,
    segment: usize,
    walk: &Walk,
    #[comptime] holding: Holding,
) -> Array<Vector<f32, N>> {
    let mut weights = Array::<Vector<f32, N>>::new(comptime!(holding.held));
    #[unroll]
    for v in 0..holding.held {
        let place = place(v, holding);
        let mut values = Vector::<f32, N>::zeroed();
        if exists(place, walk, holding) {
            let start = (segment * walk.vectors + place) * N::value();
            let mut loaded = Vector::<f32, N>::empty();
            #[unroll]
            for i in 0..N::value() {
                loaded[i] = weight[start + i];
            }
            values = loaded;
        }
        weights[v] = values;
    }
    weights
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel's arguments are its buffers and scalars"
)]
fn forward_kernel<X: Float, Z: Float, O: Float, N: Size>(
    x: &Array<Vector<X, N>>,
    z: &ComptimeOption<Array<Vector<Z, N>>>,
    weight: &Array<f32>,
    out: &mut Array<Vector<O, N>>,
    rstd: &mut Array<f32>,
    x_rows: Rows,
    z_rows: Rows,
    walk: Walk,
    #[comptime] holding: Holding,
    #[define(X)] _x_dtype: StorageType,
    #[define(Z)] _z_dtype: StorageType,
    #[define(O)] _out_dtype: StorageType,
) {
    let has_gate = z.is_some();
    let mut shared = SharedMemory::<f32>::new(comptime!(holding.team.units as usize));
    let segment = CUBE_POS % walk.segments;
    let weights = load_weights::<N>(weight, segment, &walk, holding);
    let mut row = CUBE_POS / walk.segments;
    while row < walk.rows {
        let x_start = row_start(&x_rows, row) + segment * walk.vectors;
        let z_start = row_start(&z_rows, row) + segment * walk.vectors;
        let mut values = Array::<Vector<f32, N>>::new(comptime!(holding.held));
        let mut squares = Vector::<f32, N>::zeroed();
        #[unroll]
        for v in 0..holding.held {
            let place = place(v, holding);
            let mut value = Vector::<f32, N>::zeroed();
            if exists(place, &walk, holding) {
                value = Vector::<f32, N>::cast_from(x[x_start + place]);
                if comptime!(has_gate) {
                    let gate = Vector::<f32, N>::cast_from(z.as_ref().unwrap()[z_start + place]);
                    value *= silu::<N>(gate);
                }
            }
            squares += value * value;
            values[v] = value;
        }
        let sum = cube_sum(vector_sum::<N>(squares), &mut shared, holding.team);
        let scale = f32::inverse_sqrt(sum * walk.inverse_len + walk.eps);
        let out_start = (row * walk.segments + segment) * walk.vectors;
        #[unroll]
        for v in 0..holding.held {
            let place = place(v, holding);
            if exists(place, &walk, holding) {
                let value = values[v] * Vector::<f32, N>::new(scale) * weights[v];
                out[out_start + place] = Vector::<O, N>::cast_from(value);
            }
        }
        if UNIT_POS == 0 {
            rstd[row * walk.segments + segment] = scale;
        }
        row += walk.cubes;
    }
}

#[cube(launch_unchecked, address_type = "dynamic")]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel's arguments are its buffers and scalars"
)]
fn backward_kernel<X: Float, Z: Float, O: Float, N: Size>(
    x: &Array<Vector<X, N>>,
    z: &ComptimeOption<Array<Vector<Z, N>>>,
    weight: &Array<f32>,
    rstd: &Array<f32>,
    dout: &Array<Vector<O, N>>,
    dx: &mut Array<Vector<X, N>>,
    dz: &mut ComptimeOption<Array<Vector<Z, N>>>,
    partials: &mut Array<f32>,
    x_rows: Rows,
    z_rows: Rows,
    dout_rows: Rows,
    dz_rows: Rows,
    walk: Walk,
    #[comptime] holding: Holding,
    #[define(X)] _x_dtype: StorageType,
    #[define(Z)] _z_dtype: StorageType,
    #[define(O)] _out_dtype: StorageType,
) {
    let has_gate = z.is_some();
    let held = comptime!(holding.held);
    let mut shared = SharedMemory::<f32>::new(comptime!(holding.team.units as usize));
    let segment = CUBE_POS % walk.segments;
    let cube = CUBE_POS / walk.segments;
    let weights = load_weights::<N>(weight, segment, &walk, holding);
    let mut dweight = Array::<Vector<f32, N>>::new(held);
    #[unroll]
    for v in 0..held {
        dweight[v] = Vector::<f32, N>::zeroed();
    }
    let mut row = cube;
    while row < walk.rows {
        let first = segment * walk.vectors;
        let x_start = row_start(&x_rows, row) + first;
        let z_start = row_start(&z_rows, row) + first;
        let dout_start = row_start(&dout_rows, row) + first;
        let scale = rstd[row * walk.segments + segment];
        let mut xs = Array::<Vector<f32, N>>::new(held);
        let mut grads = Array::<Vector<f32, N>>::new(held);
        // The gate and its slope; unused without one.
        let mut gates = Array::<Vector<f32, N>>::new(held);
        let mut slopes = Array::<Vector<f32, N>>::new(held);
        let mut products = Vector::<f32, N>::zeroed();
        #[unroll]
        for v in 0..held {
            let place = place(v, holding);
            let mut value = Vector::<f32, N>::zeroed();
            let mut grad = Vector::<f32, N>::zeroed();
            if exists(place, &walk, holding) {
                value = Vector::<f32, N>::cast_from(x[x_start + place]);
                grad = Vector::<f32, N>::cast_from(dout[dout_start + place]);
            }
            xs[v] = value;
            if comptime!(has_gate) {
                let mut gate = Vector::<f32, N>::zeroed();
                if exists(place, &walk, holding) {
                    gate = Vector::<f32, N>::cast_from(z.as_ref().unwrap()[z_start + place]);
                }
                let s = sigmoid::<N>(gate);
                slopes[v] = silu_slope::<N>(gate, s);
                gates[v] = gate * s;
                value *= gates[v];
            }
            let normal = value * Vector::<f32, N>::new(scale);
            dweight[v] += grad * normal;
            grads[v] = grad * weights[v];
            products += grads[v] * normal;
        }
        let sum = cube_sum(vector_sum::<N>(products), &mut shared, holding.team);
        let mean = Vector::<f32, N>::new(sum * walk.inverse_len);
        let scale = Vector::<f32, N>::new(scale);
        let dx_start = (row * walk.segments + segment) * walk.vectors;
        #[unroll]
        for v in 0..held {
            let place = place(v, holding);
            if exists(place, &walk, holding) {
                if comptime!(has_gate) {
                    let normal = xs[v] * gates[v] * scale;
                    let du = scale * (grads[v] - normal * mean);
                    dx[dx_start + place] = Vector::<X, N>::cast_from(du * gates[v]);
                    let dz_start = row_start(&dz_rows, row) + first;
                    dz.as_mut().unwrap()[dz_start + place] =
                        Vector::<Z, N>::cast_from(du * xs[v] * slopes[v]);
                } else {
                    let normal = xs[v] * scale;
                    let du = scale * (grads[v] - normal * mean);
                    dx[dx_start + place] = Vector::<X, N>::cast_from(du);
                }
            }
        }
        row += walk.cubes;
    }
    let start = (cube * walk.segments + segment) * walk.vectors;
    #[unroll]
    for v in 0..held {
        let place = place(v, holding);
        if exists(place, &walk, holding) {
            #[unroll]
            for i in 0..N::value() {
                partials[(start + place) * N::value() + i] = dweight[v][i];
            }
        }
    }
}

/// What is normalised, and by what.
pub(super) struct Norm<'a, R: CubeRuntime> {
    pub(super) x: &'a CubeTensor<R>,
    /// A gate of the shape of `x`.
    pub(super) z: Option<&'a CubeTensor<R>>,
    /// `[channels]`.
    pub(super) weight: &'a CubeTensor<R>,
    /// Segments of a row.
    pub(super) segments: usize,
    pub(super) eps: f32,
}

/// A [`Norm`] in terms of a kernel.
struct Plan<R: CubeRuntime> {
    x: View<R>,
    z: Option<View<R>>,
    weight: CubeTensor<R>,
    width: usize,
    holding: Holding,
    vectors: usize,
    segments: usize,
    cubes: usize,
    eps: f32,
}

impl<R: CubeRuntime> Plan<R> {
    /// With vectors that suit further views, too, and elements of `out`; `resident` units a
    /// multiprocessor.
    fn new(norm: &Norm<'_, R>, others: &[&View<R>], out: DType, resident: u32) -> Self {
        let x = View::read(norm.x);
        let z = norm.z.map(View::read);
        for other in z.iter().chain(others.iter().copied()) {
            x.assert_like(other, "norm");
        }
        let (channels, segments) = (x.channels, norm.segments);
        assert_eq!(norm.weight.meta.num_elements(), channels, "norm: weight");
        assert!(
            segments > 0 && channels.is_multiple_of(segments),
            "norm: {segments} groups of {channels} channels"
        );
        let len = channels / segments;
        let views: Vec<_> = [&x]
            .into_iter()
            .chain(&z)
            .chain(others.iter().copied())
            .collect();
        let client = &norm.x.client;
        let fits = |width: &usize| len.is_multiple_of(*width) && width * out.size() <= 16;
        let width = [common_width(&views), 4, 2]
            .into_iter()
            .find(|width| *width <= common_width(&views) && fits(width));
        let width = width.unwrap_or(1);
        let vectors = len / width;
        // Two vectors a unit, so that a load has another one to wait with.
        let team = Team::new(client, vectors.div_ceil(2), MOST_UNITS);
        let units = team.units as usize;
        let holding = Holding {
            team,
            held: vectors.div_ceil(units),
            is_whole: vectors.is_multiple_of(units),
        };
        let resident = (resident / team.units).max(1) * multiprocessors(client);
        let cubes = (resident as usize / segments).clamp(1, x.rows().max(1));
        Self {
            weight: into_contiguous(cast(norm.weight.clone(), DType::F32)),
            x,
            z,
            width,
            holding,
            vectors,
            segments,
            cubes,
            eps: norm.eps,
        }
    }

    fn walk(&self) -> WalkLaunch<R> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "channels of a group are far below 2^24"
        )]
        let len = (self.vectors * self.width) as f32;
        WalkLaunch::new(
            self.x.rows(),
            self.segments,
            self.vectors,
            self.cubes,
            self.eps,
            len.recip(),
        )
    }

    fn count(&self) -> CubeCount {
        CubeCount::new_1d(word(self.cubes * self.segments))
    }

    /// The argument for an array that there is with a gate.
    fn gate<Z: Float, N: Size>(
        view: Option<&View<R>>,
    ) -> ComptimeOptionArgs<Array<Vector<Z, N>>, R> {
        match view {
            Some(view) => ComptimeOptionArgs::Some(view.array()),
            None => ComptimeOptionArgs::None,
        }
    }

    /// Where the rows of the gate are; those of `x` without one, which nobody reads.
    fn gate_rows(&self) -> RowsLaunch<R> {
        self.z.as_ref().unwrap_or(&self.x).launch(self.width)
    }
}

/// The norm in dtype `out`, and f32 `[rows, segments]` of `1 / sqrt(mean(u^2) + eps)`.
pub(super) fn forward<R: CubeRuntime>(
    norm: &Norm<'_, R>,
    out: DType,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let plan = Plan::new(norm, &[], out, FORWARD_UNITS);
    let y = empty(norm.x, norm.x.meta.shape().clone(), out);
    let rstd = empty(norm.x, [plan.x.rows(), plan.segments], DType::F32);
    let views: Vec<_> = [&plan.x].into_iter().chain(&plan.z).collect();
    count_launch();
    // SAFETY: a cube reads and writes rows below `walk.rows` and vectors below `walk.vectors` of
    // its segment, which are those of the views and of the results.
    unsafe {
        forward_kernel::launch_unchecked::<R>(
            &norm.x.client,
            plan.count(),
            CubeDim::new_1d(plan.holding.team.units),
            address_type(&views),
            plan.width,
            plan.x.array(),
            Plan::gate(plan.z.as_ref()),
            plan.weight.clone().into_array_arg(),
            y.clone().into_array_arg(),
            rstd.clone().into_array_arg(),
            plan.x.launch(plan.width),
            plan.gate_rows(),
            plan.walk(),
            plan.holding,
            norm.x.dtype.into(),
            norm.z.unwrap_or(norm.x).dtype.into(),
            out.into(),
        );
    }
    (y, rstd)
}

/// The gradients: of `x`, new and dense, and of the weight in `weight_dtype`; of the gate into `dz`.
pub(super) fn backward<R: CubeRuntime>(
    norm: &Norm<'_, R>,
    rstd: &CubeTensor<R>,
    dout: &CubeTensor<R>,
    dz: Option<&CubeTensor<R>>,
    weight_dtype: DType,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let incoming = View::read(dout);
    let into = dz.map(View::written);
    let others: Vec<_> = [&incoming].into_iter().chain(&into).collect();
    let plan = Plan::new(norm, &others, dout.dtype, BACKWARD_UNITS);
    assert_eq!(
        rstd.meta.num_elements(),
        plan.x.rows() * plan.segments,
        "norm: one rstd for each group of a row"
    );
    assert_eq!(
        norm.z.map(|z| z.dtype),
        dz.map(|dz| dz.dtype),
        "norm: the gradient of the gate has its dtype"
    );
    let dx = empty(norm.x, norm.x.meta.shape().clone(), norm.x.dtype);
    let channels = plan.x.channels;
    let partials = empty(norm.x, [plan.cubes, channels], DType::F32);
    let views: Vec<_> = [&plan.x].into_iter().chain(&plan.z).chain(others).collect();
    let into_rows = into.as_ref().unwrap_or(&plan.x).launch(plan.width);
    count_launch();
    // SAFETY: as in `forward`; each cube writes its own segment of its own row of partial sums.
    unsafe {
        backward_kernel::launch_unchecked::<R>(
            &norm.x.client,
            plan.count(),
            CubeDim::new_1d(plan.holding.team.units),
            address_type(&views),
            plan.width,
            plan.x.array(),
            Plan::gate(plan.z.as_ref()),
            plan.weight.clone().into_array_arg(),
            into_contiguous(rstd.clone()).into_array_arg(),
            incoming.array(),
            dx.clone().into_array_arg(),
            Plan::gate(into.as_ref()),
            partials.clone().into_array_arg(),
            plan.x.launch(plan.width),
            plan.gate_rows(),
            incoming.launch(plan.width),
            into_rows,
            plan.walk(),
            plan.holding,
            norm.x.dtype.into(),
            norm.z.unwrap_or(norm.x).dtype.into(),
            dout.dtype.into(),
        );
    }
    let dweight = empty(norm.x, Shape::new([channels]), weight_dtype);
    (dx, column_sums(&partials, 0, dweight))
}
