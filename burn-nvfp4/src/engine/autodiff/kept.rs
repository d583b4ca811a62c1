//! What nodes keep, and what they keep together.
//!
//! One packed weight serves all linears of a [`shared_weights`](crate::shared_weights) scope, and
//! one packed `X` all linears that read it one after another (q, k and v of attention): the random
//! bits of an operand do not depend on the layer. Both are told apart by the id that the graph
//! gives a tensor, under which its values never change. All of it is counted while it lives:
//! [`stats::kept_bytes`](crate::stats::kept_bytes).

use std::any::Any;
use std::cell::RefCell;
use std::sync::{Arc, Weak};

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, TensorMetadata};

use super::super::linear::{Kept, Weight, WeightOperands};
use super::super::{Nvfp4Engine, Operand};
use crate::recipe::{Recipe, ScaleRenewal};
use crate::runtime::LinearPlan;
use crate::scope;
use crate::stats::Counted;

/// `X` as wgrad reads it.
#[derive(Debug)]
pub(super) struct KeptX<B: Backend> {
    operand: Operand<B>,
    /// See [`Kept::x_mean`].
    mean: Option<FloatTensor<B>>,
    _counted: Counted,
}

/// What decides the bits of an operand, besides the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    recipe: Recipe,
    seed: u64,
    step: u64,
}

impl Key {
    fn of(plan: &LinearPlan) -> Self {
        Self {
            recipe: plan.recipe,
            seed: plan.seed,
            step: plan.step,
        }
    }
}

/// A tensor of the graph, how it was packed, and for which micro-batch: random bits of data are its
/// own.
type Of = (u64, Key, u32);

fn of_x(id: u64, plan: &LinearPlan) -> Of {
    (id, Key::of(plan), plan.micro_batch)
}

thread_local! {
    /// The `X` of the last linear, for as long as a node keeps it.
    static LAST_X: RefCell<Option<(Of, Box<dyn Any>)>> = const { RefCell::new(None) };
}

impl<B: Nvfp4Engine> KeptX<B> {
    /// What the linear before has kept of the same tensor.
    pub(super) fn of_last(id: u64, plan: &LinearPlan) -> Option<Arc<Self>> {
        // In a sampled step each layer measures its own operands. Not where amaxes are kept between
        // steps: an operand that is made in sampled steps alone is under an amax of its own, of an
        // earlier step, and its bits are not those of the one that is shared in the others.
        if plan.sampled && plan.recipe.scale_renewal == ScaleRenewal::EveryUse {
            return None;
        }
        LAST_X.with_borrow(|last| {
            let (of, x) = last.as_ref()?;
            let x = x.downcast_ref::<Weak<Self>>()?;
            (*of == of_x(id, plan)).then(|| x.upgrade())?
        })
    }

    /// Keeps what forward made of the tensor `id`.
    pub(super) fn new(
        operand: Operand<B>,
        mean: Option<FloatTensor<B>>,
        id: u64,
        plan: &LinearPlan,
        device: &Device<B>,
    ) -> Arc<Self> {
        let of_mean = mean.as_ref().map_or(0, super::super::operand::tensor_bytes);
        let bytes = operand.bytes_of_activation() + of_mean;
        let kept = Arc::new(Self {
            operand,
            mean,
            _counted: Counted::new::<B>(device, bytes),
        });
        let weak: Box<dyn Any> = Box::new(Arc::downgrade(&kept));
        LAST_X.set(Some((of_x(id, plan), weak)));
        kept
    }

    /// What backward reads.
    pub(super) fn read(this: Arc<Self>) -> (Operand<B>, Option<FloatTensor<B>>) {
        // The last node to read it gives it up, so that its memory is free behind the GEMM.
        match Arc::try_unwrap(this) {
            Ok(Self { operand, mean, .. }) => (operand, mean),
            Err(shared) => (shared.operand.clone(), shared.mean.clone()),
        }
    }
}

/// A packed weight that several linears share.
#[derive(Clone, Debug)]
struct SharedWeight<B: Backend> {
    key: Key,
    operands: WeightOperands<B>,
    counted: Counted,
}

/// The weight of a linear for fprop, and the count of it if a scope holds it packed.
pub(super) fn weight_of<B: Nvfp4Engine, C: CheckpointStrategy>(
    weight: FloatTensor<Autodiff<B, C>>,
    plan: &LinearPlan,
) -> (Weight<B>, Option<Counted>) {
    // Whatever is computed anew for each linear has a new id each time.
    let is_leaf = weight.node.order == 0;
    let is_empty = weight.primitive.shape().num_elements() == 0;
    let Recipe { fprop, dgrad, .. } = plan.recipe;
    let is_packed = fprop.rhs.is_quantized() || dgrad.rhs.is_quantized();
    if !is_leaf || is_empty || !is_packed {
        return (Weight::Tensor(weight.primitive), None);
    }
    let key = Key::of(plan);
    let (id, tensor) = (weight.node.id.value, weight.primitive);
    let make = || {
        let device = B::float_device(&tensor);
        let operands = B::pack_weight(tensor.clone(), plan);
        let counted = Counted::new::<B>(&device, operands.bytes());
        SharedWeight {
            key,
            operands,
            counted,
        }
    };
    match scope::shared(id, |held: &SharedWeight<B>| held.key == key, make) {
        Some(held) => (Weight::Operands(held.operands), Some(held.counted)),
        None => (Weight::Tensor(tensor), None),
    }
}

/// What a node keeps of one linear.
#[derive(Clone, Debug)]
pub(super) struct KeptByNode<B: Backend> {
    pub(super) weight: Option<Operand<B>>,
    pub(super) x: Option<Arc<KeptX<B>>>,
    /// Counts the weight.
    pub(super) _counted: Option<Counted>,
}

impl<B: Nvfp4Engine> KeptByNode<B> {
    /// As backward reads it.
    pub(super) fn read(self) -> Kept<B> {
        let Self { weight, x, .. } = self;
        let (x, x_mean) = x.map(KeptX::read).unzip();
        Kept {
            weight,
            x,
            x_mean: x_mean.flatten(),
        }
    }
}
