//! The node behind `Nvfp4<Autodiff<B>>`.
//!
//! One node per linear. Forward fixes the plan (recipe, seed, step, layer) and packs what backward
//! needs; the activation itself is not kept. Backward quantizes `dY` under the plan of the forward,
//! so a layer scope or a schedule that has moved on changes nothing.

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind, OpsPrep};
use burn_backend::ops::ModuleOps;
use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, DType, TensorMetadata};

use self::kept::{KeptByNode, KeptX, weight_of};
use super::linear::{self, Kept, Like, Wanted};
use super::{HostMatrix, MemoryGauge, Nvfp4Engine, Support, Weight, sample};
use crate::runtime::LinearPlan;
use crate::stats::Counted;

mod kept;
#[cfg(all(test, feature = "ndarray"))]
mod tests;

/// The op of the node; all it knows is in [`Saved`].
#[derive(Debug)]
struct QuantizedLinear;

/// What the node keeps between forward and backward.
#[derive(Clone, Debug)]
struct Saved<B: Backend> {
    plan: LinearPlan,
    kept: KeptByNode<B>,
    x: Like,
    weight: Like,
    bias: Option<DType>,
}

impl<B: Nvfp4Engine, const N: usize> Backward<B, N> for QuantizedLinear {
    type State = Saved<B>;

    fn backward(self, ops: Ops<Saved<B>, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let Saved {
            plan,
            kept,
            x,
            weight,
            bias,
        } = ops.state;
        let mut parents = ops.parents.into_iter();
        let (x_node, weight_node) = (parents.next().flatten(), parents.next().flatten());

        if let (Some(Some(node)), Some(dtype)) = (parents.next(), bias) {
            grads.register::<B>(node.id, linear::bias_grad::<B>(dy.clone(), dtype));
        }
        let (dx, dw) = B::backward(kept.read(), dy, &plan, x, weight);
        for (node, grad) in [(x_node, dx), (weight_node, dw)] {
            if let (Some(node), Some(grad)) = (node, grad) {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

impl<B: Nvfp4Engine, C: CheckpointStrategy> Nvfp4Engine for Autodiff<B, C> {
    fn read_matrix<R>(x: FloatTensor<Self>, read: impl FnOnce(HostMatrix<'_>) -> R) -> R {
        B::read_matrix(x.primitive, read)
    }

    fn linear_with_plan(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        plan: LinearPlan,
    ) -> FloatTensor<Self> {
        // The plain layer keeps burn-autodiff's own node, and with it recomputation under
        // `BalancedCheckpointing`. It cannot mix dtypes; ours can.
        let dtype = x.dtype();
        let one_dtype = weight.dtype() == dtype && bias.as_ref().is_none_or(|b| b.dtype() == dtype);
        let own_gemm = B::has_own_gemm(&B::float_device(&x.primitive));
        if !plan.recipe.is_quantized() && one_dtype && !own_gemm {
            let gemms = [
                ("fprop", true),
                ("dgrad", x.is_tracked()),
                ("wgrad", weight.is_tracked()),
            ];
            for (gemm, _) in gemms.into_iter().filter(|(_, runs)| *runs) {
                sample::burns_own::<B>(gemm, &x.primitive, &plan);
            }
            return <Self as ModuleOps<Self>>::linear(x, weight, bias);
        }
        // The number of parents is a const generic of burn-autodiff.
        match bias {
            Some(bias) => {
                let parents = [x.node.clone(), weight.node.clone(), bias.node.clone()];
                let prep = QuantizedLinear.prepare::<C>(parents);
                record::<B, C, 3>(prep, x, weight, Some(bias), plan)
            }
            None => {
                let prep = QuantizedLinear.prepare::<C>([x.node.clone(), weight.node.clone()]);
                record::<B, C, 2>(prep, x, weight, None, plan)
            }
        }
    }

    fn memory_gauge(device: &Device<Self>) -> Option<MemoryGauge> {
        B::memory_gauge(device)
    }

    fn support(device: &Device<Self>) -> Support {
        B::support(device)
    }
}

/// Runs forward and records the node, unless nothing upstream is tracked.
fn record<B: Nvfp4Engine, C: CheckpointStrategy, const N: usize>(
    prep: OpsPrep<QuantizedLinear, B, Saved<B>, C, N>,
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    bias: Option<FloatTensor<Autodiff<B, C>>>,
    plan: LinearPlan,
) -> FloatTensor<Autodiff<B, C>> {
    // Each operand is needed for the gradient of the other.
    let wanted = match (x.is_tracked(), weight.is_tracked()) {
        (true, true) => Wanted::Both,
        (true, false) => Wanted::Weight,
        (false, true) => Wanted::X,
        (false, false) => Wanted::Nothing,
    };
    let bias = bias.map(|bias| bias.primitive);
    match prep.compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let x_is = (x.shape(), x.dtype());
            let weight_is = (weight.shape(), weight.dtype());
            let bias_is = bias.as_ref().map(TensorMetadata::dtype);
            let (y, kept) = forward::<B, C>(x, weight, bias, &plan, wanted);
            let saved = Saved {
                plan,
                kept,
                x: x_is,
                weight: weight_is,
                bias: bias_is,
            };
            prep.finish(saved, y)
        }
        OpsKind::UnTracked(prep) => {
            let weight = Weight::Tensor(weight.primitive);
            prep.finish(B::fprop(x.primitive, weight, bias, &plan, Wanted::Nothing).0)
        }
    }
}

/// Runs fprop, and keeps for backward what is not kept yet.
fn forward<B: Nvfp4Engine, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    bias: Option<FloatTensor<B>>,
    plan: &LinearPlan,
    wanted: Wanted,
) -> (FloatTensor<B>, KeptByNode<B>) {
    let (device, id) = (B::float_device(&x.primitive), x.node.id.value);
    let known = match wanted {
        Wanted::Both => KeptX::<B>::of_last(id, plan),
        Wanted::Nothing | Wanted::Weight | Wanted::X => None,
    };
    let asked = if known.is_some() {
        wanted.without_x()
    } else {
        wanted
    };
    let (weight, counted) = weight_of::<B, C>(weight, plan);
    let (y, kept) = B::fprop(x.primitive, weight, bias, plan, asked);
    let Kept { weight, x, x_mean } = kept;
    let counted = counted.or_else(|| {
        let weight = weight.as_ref()?;
        Some(Counted::new::<B>(&device, weight.bytes()))
    });
    let x = known.or_else(|| Some(KeptX::new(x?, x_mean, id, plan, &device)));
    let kept = KeptByNode {
        weight,
        x,
        _counted: counted,
    };
    (y, kept)
}
