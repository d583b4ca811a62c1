//! The six ways in which a linear reads its tensors as operands.

use burn_backend::tensor::{Device, FloatTensor};

use super::super::{Lifetime, Nvfp4Engine, Operand, OperandRequest};
use super::{ONE_EACH, Wanted, quantize_all};
use crate::cpu::Contraction;
use crate::recipe::{BackwardReads, OperandSpec};
use crate::rng::Stream;
use crate::runtime::LinearPlan;

/// Random bytes of an operand as fprop reads it, should a recipe round it stochastically.
const FPROP: Stream = Stream::Other(0);

/// One use of a tensor as an operand.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Use {
    pub(in super::super) spec: OperandSpec,
    pub(in super::super) along: Contraction,
    operand: &'static str,
    stream: Stream,
}

/// How backward will read what forward keeps of a tensor.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct KeptUse {
    pub(in super::super) later: Use,
    /// What fprop packs for itself is kept.
    pub(in super::super) one_packing: bool,
}

impl KeptUse {
    fn new<B: Nvfp4Engine>(now: Use, later: Use, device: &Device<B>) -> Self {
        let one_packing =
            later.spec == now.spec && now.spec.is_transposable() && B::packs_for_both_axes(device);
        Self { later, one_packing }
    }
}

/// What forward keeps.
pub(in super::super) struct KeptUses {
    pub(in super::super) weight: Option<KeptUse>,
    pub(in super::super) x: Option<KeptUse>,
}

impl KeptUses {
    pub(in super::super) fn new<B: Nvfp4Engine>(
        plan: &LinearPlan,
        wanted: Wanted,
        device: &Device<B>,
    ) -> Self {
        let kept = |now, later| KeptUse::new::<B>(now, later, device);
        Self {
            weight: wanted
                .weight()
                .then(|| kept(fprop_weight_use(plan), dgrad_weight_use(plan))),
            x: wanted
                .x()
                .then(|| kept(fprop_x_use(plan), wgrad_x_use(plan))),
        }
    }
}

impl Use {
    pub(super) fn request(self, plan: &LinearPlan, lifetime: Lifetime) -> OperandRequest<'_> {
        let Self {
            spec,
            along,
            operand,
            stream,
        } = self;
        OperandRequest {
            spec,
            along,
            key: plan.key(stream),
            lifetime,
            layer: plan.layer_name(),
            operand,
        }
    }

    pub(super) fn quantize<B: Nvfp4Engine>(
        self,
        x: FloatTensor<B>,
        plan: &LinearPlan,
        lifetime: Lifetime,
    ) -> Operand<B> {
        let request = self.request(plan, lifetime);
        quantize_all(x, &[request], None, plan)
            .pop()
            .expect(ONE_EACH)
    }

    /// True if this use of backward's is made from what fprop multiplied, `now`.
    pub(super) fn reads_fprop(self, now: Self, plan: &LinearPlan) -> bool {
        plan.recipe.backward_reads == BackwardReads::FpropOperands && now.spec.is_quantized()
    }

    /// For fprop, whose other operand may be there already.
    pub(super) fn quantize_for<B: Nvfp4Engine>(
        self,
        x: FloatTensor<B>,
        plan: &LinearPlan,
        lifetime: Lifetime,
        other: Option<&Operand<B>>,
    ) -> Operand<B> {
        let request = self.request(plan, lifetime);
        quantize_all(x, &[request], other, plan)
            .pop()
            .expect(ONE_EACH)
    }
}

pub(super) fn fprop_x_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.fprop.lhs,
        along: Contraction::Columns,
        operand: "fprop.lhs",
        stream: FPROP,
    }
}

pub(in super::super) fn fprop_weight_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.fprop.rhs,
        along: Contraction::Rows,
        operand: "fprop.rhs",
        stream: FPROP,
    }
}

pub(super) fn dgrad_weight_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.dgrad.rhs,
        along: Contraction::Columns,
        operand: "dgrad.rhs",
        stream: Stream::DgradWeight,
    }
}

pub(super) fn wgrad_x_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.wgrad.lhs,
        along: Contraction::Rows,
        operand: "wgrad.lhs",
        stream: Stream::WgradX,
    }
}

pub(super) fn dgrad_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.dgrad.lhs,
        along: Contraction::Columns,
        operand: "dgrad.lhs",
        stream: Stream::Dgrad,
    }
}

pub(super) fn wgrad_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.wgrad.rhs,
        along: Contraction::Rows,
        operand: "wgrad.rhs",
        stream: Stream::Wgrad,
    }
}
