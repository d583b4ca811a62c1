//! Quantizing under amaxes that are renewed every so many steps (numerics §13).
//!
//! In a step that renews, every operand is under its own amax, which is kept if backward follows:
//! the largest one of the step, should there be several micro-batches. In other steps an operand is
//! under what is kept, and under its own amax if nothing is.

use std::any::Any;
use std::sync::Arc;

use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{DType, Scalar, Shape, TensorMetadata, get_device_settings};

use super::{DeviceOperand, Nvfp4Engine, Operand, OperandRequest, sample};
use crate::renewal::{KeptAmax, Read, TakenAmax, Value};
use crate::runtime::{self, LinearPlan, TakenAmaxes};

/// Operands of the same tensor, as the plan renews their scales.
pub(super) fn quantize<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    requests: &[OperandRequest<'_>],
    other: Option<&Operand<B>>,
    plan: &LinearPlan,
) -> Vec<Operand<B>> {
    let device = B::float_device(&x);
    let keeps = |request: &OperandRequest<'_>| {
        request.spec.has_renewable_scale() && x.shape().num_elements() > 0
    };
    let renews = plan.recipe.scale_renewal.renews(plan.step);
    let amaxes: Vec<_> = requests
        .iter()
        .map(|request| {
            let reads = !renews && plan.layer.is_some() && keeps(request);
            reads.then(|| kept::<B>(&device, request)).flatten()
        })
        .collect();
    let taken: Vec<_> = requests
        .iter()
        .zip(&amaxes)
        .map(|(request, amax)| plan.amaxes == TakenAmaxes::Kept && amax.is_none() && keeps(request))
        .collect();
    let sampled = plan.sampled.then(|| x.clone());
    let made = if amaxes.iter().all(Option::is_none) {
        B::quantize_operands(x, requests, other)
    } else {
        B::quantize_operands_under(x, requests, &amaxes, other)
    };
    for ((request, operand), taken) in requests.iter().zip(&made).zip(taken) {
        if let Some(amax) = taken.then(|| own_amax(operand, &device)).flatten() {
            keep::<B>(&device, request, amax, plan.step);
        }
    }
    if let Some(x) = sampled {
        // The part that is measured is under the amax that the whole is under.
        let under = |(request, operand): (&OperandRequest<'_>, &Operand<B>)| {
            let is_under_one = request.spec.has_renewable_scale();
            is_under_one.then(|| own_amax(operand, &device)).flatten()
        };
        let amaxes: Vec<_> = requests.iter().zip(&made).map(under).collect();
        sample::operands::<B>(&x, requests, &amaxes, plan);
    }
    made
}

/// What the amax of an operand is kept as.
fn name(request: &OperandRequest<'_>) -> String {
    format!("{}.{}", request.layer, request.operand)
}

/// The amax that is kept for an operand, f32 `[1]`.
fn kept<B: Nvfp4Engine>(
    device: &Device<B>,
    request: &OperandRequest<'_>,
) -> Option<FloatTensor<B>> {
    let name = name(request);
    let kept = runtime::with_kept_amaxes::<B, _>(device, |kept| kept.get(&name).cloned())?;
    let tensor = tensor_of::<B>(&kept.value, kept.read, device);
    if kept.value.is::<f32>() {
        // From now on it need not be sent again.
        store::<B>(device, name, tensor.clone(), kept.taken);
    }
    Some(tensor)
}

fn tensor_of<B: Nvfp4Engine>(value: &Value, read: Read, device: &Device<B>) -> FloatTensor<B> {
    match value.downcast_ref::<FloatTensor<B>>() {
        Some(tensor) => tensor.clone(),
        None => scalar::<B>(read(&**value), device),
    }
}

fn scalar<B: Nvfp4Engine>(value: f32, device: &Device<B>) -> FloatTensor<B> {
    B::from_values(vec![value], Shape::new([1]), DType::F32, device)
}

/// The amax that an operand was quantized under.
fn own_amax<B: Nvfp4Engine>(operand: &Operand<B>, device: &Device<B>) -> Option<FloatTensor<B>> {
    match operand {
        Operand::HighPrecision { .. } => None,
        Operand::Packed { matrix, .. } => {
            Some(scalar::<B>(matrix.tensor_scale().max_amax(), device))
        }
        Operand::Decoded(matrix) => Some(scalar::<B>(matrix.scale.max_amax(), device)),
        Operand::Device(DeviceOperand {
            packed, decoded, ..
        }) => {
            let packed = packed.as_ref().map(|packed| packed.amax.clone());
            packed.or_else(|| decoded.as_ref().and_then(|decoded| decoded.amax.clone()))
        }
    }
}

/// Keeps an amax that was just taken, if it is the largest of its step.
///
/// One of 0 or infinity says nothing of the steps to come: while the step has taken no other, what
/// was kept before stays, or 1. That is not compared with: it may be larger than all that the step
/// will take, and would then stay until the next renewal.
fn keep<B: Nvfp4Engine>(
    device: &Device<B>,
    request: &OperandRequest<'_>,
    amax: FloatTensor<B>,
    step: u64,
) {
    let name = name(request);
    let before = runtime::with_kept_amaxes::<B, _>(device, |kept| kept.get(&name).cloned());
    let [value, largest] = match before {
        None => [1.0, 0.0].map(|value| scalar::<B>(value, device)),
        Some(KeptAmax { value, taken, read }) => {
            let of_step = taken.filter(|taken| taken.step == step);
            let largest = of_step.map(|taken| tensor_of::<B>(&taken.largest, read, device));
            let largest = largest.unwrap_or_else(|| scalar::<B>(0.0, device));
            [tensor_of::<B>(&value, read, device), largest]
        }
    };
    let bools = get_device_settings::<B>(device).bool_dtype;
    let above = B::float_greater(amax.clone(), largest.clone(), bools);
    let finite = B::float_lower_equal_elem(amax.clone(), Scalar::from(f32::MAX), bools);
    let largest = B::float_mask_where(largest, B::bool_and(above, finite), amax);
    let any = B::float_greater_elem(largest.clone(), Scalar::from(0.0_f32), bools);
    let value = B::float_mask_where(value, any, largest.clone());
    let largest = Arc::new(largest);
    store::<B>(device, name, value, Some(TakenAmax { step, largest }));
}

fn store<B: Nvfp4Engine>(
    device: &Device<B>,
    name: String,
    value: FloatTensor<B>,
    taken: Option<TakenAmax>,
) {
    let kept = KeptAmax {
        value: Arc::new(value),
        taken,
        read: read::<B>,
    };
    runtime::with_kept_amaxes::<B, _>(device, |all| all.insert(name, kept));
}

fn read<B: Nvfp4Engine>(value: &(dyn Any + Send + Sync)) -> f32 {
    match value.downcast_ref::<FloatTensor<B>>() {
        Some(tensor) => B::read_matrix(tensor.clone(), |amax| amax.first()),
        None => f32::NAN,
    }
}
