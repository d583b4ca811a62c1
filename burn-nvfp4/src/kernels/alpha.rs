//! The factor that belongs after a GEMM: `(a * b) * f32(1 / (q_max_a * q_max_b))` of the amaxes of
//! its operands (numerics §2).
//!
//! The kernel that makes the second operand writes it, since it knows both amaxes; a launch of its
//! own is for operands that were made apart.

#![expect(
    clippy::collapsible_if,
    reason = "a comptime condition is not a runtime one"
)]

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::source::{array, empty, optional};

/// The tensor scale of an operand.
#[derive(Clone, Debug)]
pub struct OperandScale<R: CubeRuntime> {
    /// f32 `[1]`; `None` for an operand without a tensor scale.
    pub amax: Option<CubeTensor<R>>,
    /// What the amax was mapped to; 1 without one.
    pub q_max: f32,
}

impl<R: CubeRuntime> OperandScale<R> {
    /// No scale.
    pub const NONE: Self = Self {
        amax: None,
        q_max: 1.0,
    };

    /// True if the operand has one scale or none, not one for each row.
    pub fn is_single(&self) -> bool {
        let amax = self.amax.as_ref();
        amax.is_none_or(|amax| amax.meta.num_elements() == 1)
    }
}

/// The factor of two operands, f32 `[1]`; `None` if neither has a tensor scale.
pub fn alpha<R: CubeRuntime>(
    lhs: &OperandScale<R>,
    rhs: &OperandScale<R>,
) -> Option<CubeTensor<R>> {
    let like = lhs.amax.as_ref().or(rhs.amax.as_ref())?;
    let out = empty(like, Shape::new([1]), DType::F32);
    // SAFETY: one unit; every array has an element.
    unsafe {
        crate::kernels::count_launch();
        multiply_amaxes::launch_unchecked::<R>(
            &like.client,
            CubeCount::new_single(),
            CubeDim::new_single(),
            optional(lhs.amax.as_ref()),
            optional(rhs.amax.as_ref()),
            1.0 / (lhs.q_max * rhs.q_max),
            array(&out),
        );
    }
    Some(out)
}

#[cube(launch_unchecked)]
fn multiply_amaxes(
    lhs: &ComptimeOption<Array<f32>>,
    rhs: &ComptimeOption<Array<f32>>,
    factor: f32,
    out: &mut Array<f32>,
) {
    out[0] = (amax_or_one(lhs) * amax_or_one(rhs)) * factor;
}

#[cube]
fn amax_or_one(amax: &ComptimeOption<Array<f32>>) -> f32 {
    let given = amax.is_some();
    if comptime!(given) {
        amax.as_ref().unwrap()[0]
    } else {
        1.0f32.runtime()
    }
}

/// Where the kernel that makes one operand writes the factor.
#[derive(CubeType, CubeLaunch)]
pub(super) struct AlphaOutput {
    /// Amax of the other operand.
    other: ComptimeOption<Array<f32>>,
    factor: f32,
    out: Array<f32>,
}

/// Has the first unit of the first cube write the factor, if it is wanted.
#[cube]
pub(super) fn write_alpha(amax: f32, alpha: &mut ComptimeOption<AlphaOutput>) {
    let wanted = alpha.is_some();
    if comptime!(wanted) {
        if CUBE_POS == 0 && UNIT_POS == 0 {
            let alpha = alpha.as_mut().unwrap();
            alpha.out[0] = (amax * amax_or_one(&alpha.other)) * alpha.factor;
        }
    }
}

/// The factor that a kernel is to write: its memory, and what the kernel needs to know.
#[derive(Clone, Debug)]
pub(super) struct Pending<R: CubeRuntime> {
    out: CubeTensor<R>,
    other: Option<CubeTensor<R>>,
    factor: f32,
}

impl<R: CubeRuntime> Pending<R> {
    /// For an operand that is made on the device of `like` and mapped to `q_max`, and the other
    /// one; `None` if one of them has a scale for each row, or neither has a scale.
    pub(super) fn new(
        like: &CubeTensor<R>,
        has_scale: bool,
        q_max: f32,
        other: &OperandScale<R>,
    ) -> Option<Self> {
        let wanted = other.is_single() && (has_scale || other.amax.is_some());
        wanted.then(|| Self {
            out: empty(like, Shape::new([1]), DType::F32),
            other: other.amax.clone(),
            factor: 1.0 / (q_max * other.q_max),
        })
    }

    /// The factor, once the kernel has run.
    pub(super) fn into_alpha(self) -> CubeTensor<R> {
        self.out
    }
}

/// The argument of a kernel that may write the factor.
pub(super) fn argument<R: CubeRuntime>(
    pending: Option<&Pending<R>>,
) -> ComptimeOptionArgs<AlphaOutput, R> {
    match pending {
        Some(Pending { out, other, factor }) => ComptimeOptionArgs::Some(AlphaOutputLaunch::new(
            optional(other.as_ref()),
            *factor,
            array(out),
        )),
        None => ComptimeOptionArgs::None,
    }
}
