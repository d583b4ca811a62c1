//! Sampling of a linear: what the operands and GEMMs of a sampled step are.

use std::borrow::Cow;

use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, TensorMetadata};

use super::{Nvfp4Engine, Operand, OperandRequest};
use crate::recipe::{GemmSpec, OperandSpec};
use crate::runtime::{self, LinearPlan};
use crate::stats::{GemmSample, OperandSample};

/// Measures the operands that are about to be made of `x`, if the step is sampled; each under the
/// amax that is kept for it, if one is.
pub(super) fn operands<B: Nvfp4Engine>(
    x: &FloatTensor<B>,
    requests: &[OperandRequest<'_>],
    amaxes: &[Option<FloatTensor<B>>],
    plan: &LinearPlan,
) {
    if !plan.sampled || x.shape().num_elements() == 0 {
        return;
    }
    let device = B::float_device(x);
    for (request, amax) in requests.iter().zip(amaxes) {
        let is_first = request.spec.is_quantized() && is_first::<B>(&device, plan, request.operand);
        if !is_first {
            continue;
        }
        let amax = amax.clone();
        let amax = amax.map(|amax| B::read_matrix(amax, |amax| amax.first()));
        let statistics = B::read_matrix(x.clone(), |matrix| matrix.statistics(request, amax));
        let sample = OperandSample {
            step: plan.step,
            layer: plan.layer.as_deref().map(str::to_owned),
            operand: Cow::Borrowed(request.operand),
            format: request.spec.to_string(),
            statistics,
        };
        runtime::with_samples::<B, _>(&device, |store| store.add_operand(sample));
    }
}

/// Notes a GEMM that is about to run on operands, if the step is sampled.
pub(super) fn gemm<B: Nvfp4Engine>(
    name: &'static str,
    spec: GemmSpec,
    [lhs, rhs]: [&Operand<B>; 2],
    plan: &LinearPlan,
    device: &Device<B>,
) {
    if plan.sampled && is_first::<B>(device, plan, name) {
        let formats = [format(lhs, spec.lhs), format(rhs, spec.rhs)];
        add::<B>(
            name,
            formats,
            B::gemm_routine(lhs, rhs, device),
            plan,
            device,
        );
    }
}

/// Notes a GEMM that is Burn's own op, if the step is sampled.
pub(super) fn burns_own<B: Nvfp4Engine>(
    name: &'static str,
    tensor: &FloatTensor<B>,
    plan: &LinearPlan,
) {
    if !plan.sampled {
        return;
    }
    let device = B::float_device(tensor);
    if is_first::<B>(&device, plan, name) {
        let dtype = tensor.dtype().name().to_owned();
        let formats = [dtype.clone(), dtype];
        add::<B>(name, formats, "Burn's own op".into(), plan, &device);
    }
}

fn is_first<B: Backend>(device: &Device<B>, plan: &LinearPlan, what: &'static str) -> bool {
    runtime::with_samples::<B, _>(device, |store| {
        store.is_first(plan.step, plan.layer.as_deref(), what)
    })
}

fn add<B: Backend>(
    name: &'static str,
    [lhs, rhs]: [String; 2],
    routine: Cow<'static, str>,
    plan: &LinearPlan,
    device: &Device<B>,
) {
    let sample = GemmSample {
        step: plan.step,
        layer: plan.layer.as_deref().map(str::to_owned),
        gemm: Cow::Borrowed(name),
        lhs,
        rhs,
        routine,
    };
    runtime::with_samples::<B, _>(device, |store| store.add_gemm(sample));
}

/// What an operand that was made by `spec` really is.
fn format<B: Backend>(operand: &Operand<B>, spec: OperandSpec) -> String {
    match operand {
        Operand::HighPrecision { tensor, .. } => tensor.dtype().name().to_owned(),
        Operand::Packed { .. } | Operand::Decoded(_) | Operand::Device(_) => spec.to_string(),
    }
}
