//! The weight of a linear: the tensor, or the operands that were packed of it for a whole step.

use burn_backend::tensor::FloatTensor;
use burn_backend::{Backend, Shape, TensorMetadata};

use super::super::{Nvfp4Engine, Operand};
use super::uses::{KeptUse, KeptUses, fprop_weight_use};
use super::{Shared, Wanted};
use crate::packed_weights::PackedWeight;
use crate::runtime::LinearPlan;

/// What fprop gets as its weight.
#[derive(Clone, Debug)]
pub enum Weight<B: Backend> {
    /// `[d_input, d_output]`, to be quantized as the plan says.
    Tensor(FloatTensor<B>),
    /// What [`Nvfp4Engine::pack_weight`] has made of it.
    Operands(WeightOperands<B>),
}

/// A weight as fprop and dgrad read it: packed, so that it serves any number of either.
///
/// Codes and scales, 4.5 bits an element or less. A device that emulates decodes them for each
/// GEMM, in fprop as in dgrad: the decoded values would be 16 bits an element for as long as the
/// step lasts, and making them again takes less than half the time of quantizing the tensor.
#[derive(Clone, Debug)]
pub struct WeightOperands<B: Backend> {
    /// `[d_input, d_output]`.
    pub shape: Shape,
    /// rhs of fprop.
    pub fprop: Operand<B>,
    /// rhs of dgrad; `None` if that is the operand of fprop, read along its other axis.
    pub dgrad: Option<Operand<B>>,
}

impl<B: Backend> WeightOperands<B> {
    /// rhs of dgrad.
    pub fn for_dgrad(&self) -> Operand<B> {
        let own = self.dgrad.clone();
        own.unwrap_or_else(|| self.fprop.transposed())
    }

    /// Bytes that it occupies beyond the tensor.
    pub fn bytes(&self) -> usize {
        self.fprop.bytes() + self.dgrad.as_ref().map_or(0, Operand::bytes)
    }
}

impl<B: Backend> Weight<B> {
    /// `[d_input, d_output]`.
    pub fn shape(&self) -> Shape {
        match self {
            Self::Tensor(tensor) => tensor.shape(),
            Self::Operands(operands) => operands.shape.clone(),
        }
    }

    /// rhs of fprop, if it is there already.
    pub(super) fn ready(&self) -> Option<&Operand<B>> {
        match self {
            Self::Tensor(_) => None,
            Self::Operands(operands) => Some(&operands.fprop),
        }
    }
}

impl<B: Nvfp4Engine> Weight<B> {
    /// The tensor, for an fprop that does not quantize it, and what backward needs.
    pub(super) fn in_high_precision(
        self,
        plan: &LinearPlan,
        kept: Option<KeptUse>,
    ) -> (FloatTensor<B>, Option<Operand<B>>) {
        match self {
            Self::Tensor(tensor) => {
                let shared = Shared::new(tensor.clone(), fprop_weight_use(plan), kept);
                (tensor, shared.later(plan))
            }
            Self::Operands(operands) => {
                let kept = kept.map(|_| operands.for_dgrad());
                match operands.fprop {
                    Operand::HighPrecision { tensor, .. } => (tensor, kept),
                    Operand::Packed { .. } | Operand::Decoded(_) | Operand::Device(_) => {
                        unreachable!("the operands were made by the recipe of this plan")
                    }
                }
            }
        }
    }

    /// rhs of fprop, beside its lhs, and what backward needs.
    pub(super) fn quantize(
        self,
        lhs: &Operand<B>,
        plan: &LinearPlan,
        kept: Option<KeptUse>,
        comes_packed: Option<&PackedWeight>,
    ) -> (Operand<B>, Option<Operand<B>>) {
        match (self, comes_packed) {
            (Self::Operands(operands), _) => {
                let kept = kept.map(|_| operands.for_dgrad());
                (operands.fprop, kept)
            }
            (Self::Tensor(tensor), Some(packed)) => {
                (B::load_weight(packed, &B::float_device(&tensor)), None)
            }
            (Self::Tensor(tensor), None) => {
                Shared::new(tensor, fprop_weight_use(plan), kept).quantize(plan, Some(lhs))
            }
        }
    }
}

/// [`Nvfp4Engine::pack_weight`], from the other methods of the engine.
pub(crate) fn pack_weight<B: Nvfp4Engine>(
    weight: FloatTensor<B>,
    plan: &LinearPlan,
) -> WeightOperands<B> {
    let shape = weight.shape();
    let kept = KeptUses::new::<B>(plan, Wanted::Weight, &B::float_device(&weight)).weight;
    let one_packing = kept.is_some_and(|kept| kept.one_packing);
    let (fprop, dgrad) = Shared::new(weight, fprop_weight_use(plan), kept)
        .all_kept()
        .quantize(plan, None);
    WeightOperands {
        shape,
        fprop,
        dgrad: dgrad.filter(|_| !one_packing),
    }
}
