//! One AdamW update of a parameter and its moments, one pass over memory.
//!
//! The arithmetic of burn's `AdamW` in its order: moments, bias correction, decoupled decay, step.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_nvfp4::kernels::count_launch;
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::elementwise::{grid, in_place, vector_width};
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
    let m = moment_1[ABSOLUTE_POS] * Vector::<f32, N>::new(update.beta1)
        + g * Vector::<f32, N>::new(update.one_minus_beta1);
    let v = moment_2[ABSOLUTE_POS] * Vector::<f32, N>::new(update.beta2)
        + g * g * Vector::<f32, N>::new(update.one_minus_beta2);
    let root = Vector::sqrt(v / Vector::<f32, N>::new(update.correction2));
    let delta = m
        / Vector::<f32, N>::new(update.correction1)
        / (root + Vector::<f32, N>::new(update.epsilon));
    let p = param[ABSOLUTE_POS] * Vector::<f32, N>::new(update.keep)
        - delta * Vector::<f32, N>::new(update.lr);
    new_param[ABSOLUTE_POS] = p;
    new_moment_1[ABSOLUTE_POS] = m;
    new_moment_2[ABSOLUTE_POS] = v;
}

/// [`step`] of `[parameter, first moment, second moment, gradient]`.
pub(crate) fn update<R: CubeRuntime>(
    [param, moment_1, moment_2, grad]: [CubeTensor<R>; 4],
    numbers: AdamW,
) -> [CubeTensor<R>; 3] {
    let state = State {
        param,
        moment_1,
        moment_2,
    };
    let State {
        param,
        moment_1,
        moment_2,
    } = step(state, &grad, &numbers, None);
    [param, moment_1, moment_2]
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
    if let Some(factor) = factor {
        let found = (factor.dtype, factor.meta.num_elements());
        assert_eq!(found, (DType::F32, 1), "adamw: factor");
    }
    let grad = into_contiguous(grad.clone());
    let [param, moment_1, moment_2] = [param, moment_1, moment_2].map(into_contiguous);
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
    let factor = match factor {
        Some(factor) => ComptimeOptionArgs::Some(factor.clone().into_array_arg()),
        None => ComptimeOptionArgs::None,
    };
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
