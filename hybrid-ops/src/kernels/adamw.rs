//! One AdamW update of a parameter and its moments, one pass over memory.
//!
//! The arithmetic of burn's `AdamW` in its order: moments, bias correction, decoupled decay, step.
//! Small tensors share a launch: most parameters of a model are vectors, and take longer to launch
//! than to update. A training loop holds the model while its optimizer works, so there parameters
//! are written to new memory, and only moments stay where they are.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::elementwise::{empty, grid, in_place, vector_width};
use super::sums::word;
pub use crate::op::AdamW;

/// A parameter and its moments.
#[derive(Clone, Debug)]
pub struct State<R: CubeRuntime> {
    /// f32.
    pub param: CubeTensor<R>,
    /// First moment, f32.
    pub moment_1: CubeTensor<R>,
    /// Second moment, f32.
    pub moment_2: CubeTensor<R>,
}

impl<R: CubeRuntime> From<State<R>> for [CubeTensor<R>; 3] {
    fn from(state: State<R>) -> Self {
        [state.param, state.moment_1, state.moment_2]
    }
}

/// A state and its gradient, of `[parameter, first moment, second moment, gradient]`.
pub(crate) fn with_gradient<R: CubeRuntime>(
    [param, moment_1, moment_2, grad]: [CubeTensor<R>; 4],
) -> (State<R>, CubeTensor<R>) {
    let state = State {
        param,
        moment_1,
        moment_2,
    };
    (state, grad)
}

/// What every element is updated with.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
struct Update {
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    correction1: f32,
    correction2: f32,
    epsilon: f32,
    /// One minus learning rate times weight decay.
    keep: f32,
    lr: f32,
}

impl AdamW {
    /// # Panics
    /// If no update has been counted: the bias correction would divide by zero.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "burn rounds these to the dtype of the parameter"
    )]
    fn launch<R: CubeRuntime>(&self) -> UpdateLaunch<R> {
        assert!(self.time > 0, "adamw: the first update is number 1");
        UpdateLaunch::new(
            self.beta1,
            self.beta2,
            1.0 - self.beta1,
            1.0 - self.beta2,
            1.0 - self.beta1.powi(self.time),
            1.0 - self.beta2.powi(self.time),
            self.epsilon,
            (1.0 - self.lr * f64::from(self.weight_decay)) as f32,
            self.lr as f32,
        )
    }
}

/// The results may be in the memory of what they replace.
#[cube(launch_unchecked, address_type = "dynamic")]
#[expect(
    clippy::too_many_arguments,
    reason = "a kernel's arguments are its buffers and scalars"
)]
fn step_kernel<G: Float, N: Size>(
    param: &Array<Vector<f32, N>>,
    moment_1: &Array<Vector<f32, N>>,
    moment_2: &Array<Vector<f32, N>>,
    grad: &Array<Vector<G, N>>,
    factor: &ComptimeOption<Array<f32>>,
    new_param: &mut Array<Vector<f32, N>>,
    new_moment_1: &mut Array<Vector<f32, N>>,
    new_moment_2: &mut Array<Vector<f32, N>>,
    update: Update,
    len: usize,
    #[define(G)] _grad_dtype: StorageType,
) {
    if ABSOLUTE_POS >= len {
        terminate!();
    }
    let has_factor = factor.is_some();
    let mut g = Vector::<f32, N>::cast_from(grad[ABSOLUTE_POS]);
    if comptime!(has_factor) {
        g *= Vector::<f32, N>::new(factor.as_ref().unwrap()[0]);
    }
    let (p, m, v) = updated::<N>(
        param[ABSOLUTE_POS],
        moment_1[ABSOLUTE_POS],
        moment_2[ABSOLUTE_POS],
        g,
        &update,
    );
    new_param[ABSOLUTE_POS] = p;
    new_moment_1[ABSOLUTE_POS] = m;
    new_moment_2[ABSOLUTE_POS] = v;
}

/// Parameter and moments after an update.
#[cube]
fn updated<N: Size>(
    param: Vector<f32, N>,
    moment_1: Vector<f32, N>,
    moment_2: Vector<f32, N>,
    g: Vector<f32, N>,
    update: &Update,
) -> (Vector<f32, N>, Vector<f32, N>, Vector<f32, N>) {
    let m = moment_1 * Vector::<f32, N>::new(update.beta1)
        + g * Vector::<f32, N>::new(update.one_minus_beta1);
    let v = moment_2 * Vector::<f32, N>::new(update.beta2)
        + g * g * Vector::<f32, N>::new(update.one_minus_beta2);
    let root = Vector::sqrt(v / Vector::<f32, N>::new(update.correction2));
    let delta = m
        / Vector::<f32, N>::new(update.correction1)
        / (root + Vector::<f32, N>::new(update.epsilon));
    let p = param * Vector::<f32, N>::new(update.keep) - delta * Vector::<f32, N>::new(update.lr);
    (p, m, v)
}

/// One of the tensors of a shared launch: its moments are updated in place.
#[derive(CubeType, CubeLaunch)]
struct Tensors<G: Float, N: Size> {
    param: Array<Vector<f32, N>>,
    /// Where the parameter goes; absent: in place.
    new_param: ComptimeOption<Array<Vector<f32, N>>>,
    moment_1: Array<Vector<f32, N>>,
    moment_2: Array<Vector<f32, N>>,
    grad: Array<Vector<G, N>>,
    len: usize,
}

/// Cubes of row `y` of the grid work on the `y`th tensor.
#[cube(launch_unchecked)]
fn steps_kernel<G: Float, N: Size>(
    tensors: &mut Sequence<Tensors<G, N>>,
    factor: &ComptimeOption<Array<f32>>,
    update: Update,
    #[comptime] units: u32,
    #[define(G)] _grad_dtype: StorageType,
) {
    let has_factor = factor.is_some();
    let at = (CUBE_POS_X * units + UNIT_POS) as usize;
    #[unroll]
    for i in 0..tensors.len() {
        if CUBE_POS_Y as usize == i {
            let tensors = tensors.index_mut(i);
            if at < tensors.len {
                let mut g = Vector::<f32, N>::cast_from(tensors.grad[at]);
                if comptime!(has_factor) {
                    g *= Vector::<f32, N>::new(factor.as_ref().unwrap()[0]);
                }
                let (p, m, v) = updated::<N>(
                    tensors.param[at],
                    tensors.moment_1[at],
                    tensors.moment_2[at],
                    g,
                    &update,
                );
                let stays = tensors.new_param.is_none();
                if comptime!(stays) {
                    tensors.param[at] = p;
                } else {
                    tensors.new_param.as_mut().unwrap()[at] = p;
                }
                tensors.moment_1[at] = m;
                tensors.moment_2[at] = v;
            }
        }
    }
}

/// Updates a parameter and its moments, each in place if nobody else holds its memory.
///
/// The gradient, f32, f16 or bf16, is first multiplied by `factor`, f32 `[1]`, if there is one.
///
/// # Panics
/// If the shapes of the four differ, or parameter, moments or factor are not f32.
pub fn step<R: CubeRuntime>(
    state: State<R>,
    grad: &CubeTensor<R>,
    adamw: &AdamW,
    factor: Option<&CubeTensor<R>>,
) -> State<R> {
    let (state, grad) = checked(state, grad);
    let State {
        param,
        moment_1,
        moment_2,
    } = state;
    let client = grad.client.clone();
    let len = grad.meta.num_elements();
    if len == 0 {
        return State {
            param,
            moment_1,
            moment_2,
        };
    }
    let width = vector_width(len, &[&param, &moment_1, &moment_2, &grad]);
    let (count, dim) = grid(&grad, len / width);
    let address_type = param.required_address_type();
    let (param, param_in, param_out) = in_place(param, 0);
    let (moment_1, moment_1_in, moment_1_out) = in_place(moment_1, 1);
    let (moment_2, moment_2_in, moment_2_out) = in_place(moment_2, 2);
    let factor = argument(factor);
    count_launch();
    // SAFETY: units beyond `len` return, and all buffers hold as many elements.
    unsafe {
        step_kernel::launch_unchecked::<R>(
            &client,
            count,
            dim,
            address_type,
            width,
            param_in,
            moment_1_in,
            moment_2_in,
            grad.clone().into_array_arg(),
            factor,
            param_out,
            moment_1_out,
            moment_2_out,
            adamw.launch(),
            len / width,
            grad.dtype.into(),
        );
    }
    State {
        param,
        moment_1,
        moment_2,
    }
}

/// Elements of a tensor that shares a launch, at most.
const SMALL: usize = 1 << 20;

/// Tensors of a launch, at most.
const MOST_TENSORS: usize = 6;

/// [`step`] for many parameters: small ones, if nobody else holds their moments, a few to a launch.
///
/// The results are in the order of `states`.
///
/// # Panics
/// As [`step`].
pub fn steps<R: CubeRuntime>(
    states: Vec<(State<R>, CubeTensor<R>)>,
    adamw: &AdamW,
    factor: Option<&CubeTensor<R>>,
) -> Vec<State<R>> {
    let mut done: Vec<Option<State<R>>> = states.iter().map(|_| None).collect();
    let mut small = Vec::new();
    for (index, (state, grad)) in states.into_iter().enumerate() {
        let (state, grad) = checked(state, &grad);
        let len = grad.meta.num_elements();
        let is_small = (1..=SMALL).contains(&len);
        if is_small && state.moment_1.can_mut() && state.moment_2.can_mut() {
            small.push(Job::new(index, state, grad));
        } else {
            done[index] = Some(step(state, &grad, adamw, factor));
        }
    }
    // Neighbours have one kernel and about one size: the grid is as wide as the longest.
    small.sort_by_key(|job| (job.kernel(), job.grad.meta.num_elements()));
    while let Some(first) = small.first() {
        let bindings = first.grad.client.properties().hardware.max_bindings as usize;
        // The factor, and what the runtime adds.
        let most = (bindings.saturating_sub(2) / Job::<R>::BUFFERS).clamp(1, MOST_TENSORS);
        let alike = small
            .iter()
            .take(most)
            .take_while(|job| job.kernel() == first.kernel());
        let rest = small.split_off(alike.count());
        launch_together(&small, adamw, factor);
        for job in std::mem::replace(&mut small, rest) {
            let index = job.index;
            done[index] = Some(job.into_state());
        }
    }
    let all = done
        .into_iter()
        .map(|state| state.expect("every state was updated"));
    all.collect()
}

/// A tensor of a shared launch.
struct Job<R: CubeRuntime> {
    index: usize,
    state: State<R>,
    /// Where the parameter goes, if somebody else holds it.
    new_param: Option<CubeTensor<R>>,
    grad: CubeTensor<R>,
    width: usize,
}

impl<R: CubeRuntime> Job<R> {
    /// Buffers of a job at most.
    const BUFFERS: usize = 5;

    fn new(index: usize, state: State<R>, grad: CubeTensor<R>) -> Self {
        let param = &state.param;
        let held = !param.can_mut();
        let new_param = held.then(|| empty(param, param.meta.shape().clone(), param.dtype));
        let mut all = vec![param, &state.moment_1, &state.moment_2, &grad];
        all.extend(&new_param);
        let width = vector_width(grad.meta.num_elements(), &all);
        Self {
            index,
            state,
            new_param,
            grad,
            width,
        }
    }

    /// Jobs with the same answer can share a launch.
    fn kernel(&self) -> (usize, StorageType, bool) {
        (self.width, self.grad.dtype.into(), self.new_param.is_some())
    }

    fn vectors(&self) -> usize {
        self.grad.meta.num_elements() / self.width
    }

    fn into_state(self) -> State<R> {
        State {
            param: self.new_param.unwrap_or(self.state.param),
            ..self.state
        }
    }
}

fn launch_together<R: CubeRuntime>(jobs: &[Job<R>], adamw: &AdamW, factor: Option<&CubeTensor<R>>) {
    let Some(first) = jobs.first() else { return };
    let longest = jobs.iter().map(Job::vectors).max().unwrap_or(1);
    let dim = CubeDim::new(&first.grad.client, longest);
    let units = dim.num_elems();
    let array = |tensor: &CubeTensor<R>| tensor.clone().into_array_arg();
    let tensors = jobs.iter().map(|job| {
        let State {
            param,
            moment_1,
            moment_2,
        } = &job.state;
        let new_param = match &job.new_param {
            Some(tensor) => ComptimeOptionArgs::Some(array(tensor)),
            None => ComptimeOptionArgs::None,
        };
        TensorsLaunch::new(
            array(param),
            new_param,
            array(moment_1),
            array(moment_2),
            array(&job.grad),
            job.vectors(),
        )
    });
    count_launch();
    // SAFETY: a cube works on the tensor of its row of the grid, on vectors below its length.
    unsafe {
        steps_kernel::launch_unchecked::<R>(
            &first.grad.client,
            CubeCount::new_2d(word(longest).div_ceil(units), word(jobs.len())),
            CubeDim::new_1d(units),
            first.width,
            tensors.collect(),
            argument(factor),
            adamw.launch(),
            units,
            first.grad.dtype.into(),
        );
    }
}

/// A state and its gradient, dense.
///
/// # Panics
/// If their shapes differ, or parameter or moments are not f32.
fn checked<R: CubeRuntime>(state: State<R>, grad: &CubeTensor<R>) -> (State<R>, CubeTensor<R>) {
    let State {
        param,
        moment_1,
        moment_2,
    } = state;
    for tensor in [&param, &moment_1, &moment_2] {
        assert_eq!(tensor.dtype, DType::F32, "adamw: parameter and moments");
        assert_eq!(
            tensor.meta.shape(),
            grad.meta.shape(),
            "adamw: parameter, moments and gradient"
        );
    }
    let state = State {
        param: into_contiguous(param),
        moment_1: into_contiguous(moment_1),
        moment_2: into_contiguous(moment_2),
    };
    (state, into_contiguous(grad.clone()))
}

/// The argument for a factor.
///
/// # Panics
/// If it is not one f32.
fn argument<R: CubeRuntime>(factor: Option<&CubeTensor<R>>) -> ComptimeOptionArgs<Array<f32>, R> {
    match factor {
        Some(factor) => {
            let found = (factor.dtype, factor.meta.num_elements());
            assert_eq!(found, (DType::F32, 1), "adamw: factor");
            ComptimeOptionArgs::Some(factor.clone().into_array_arg())
        }
        None => ComptimeOptionArgs::None,
    }
}
