//! `Autodiff<B>`: one node around an operation that has a kernel on `B`.
//!
//! The node keeps what [`Op::keeps`] names and what forward made beside its result, and its
//! backward is the operation's own. Integer inputs have no gradient; an operation whose backward
//! depends on them makes what it needs of them in forward.

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::base::Checkpointer;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_autodiff::grads::Gradients;
use burn_autodiff::ops::{Backward, Ops, OpsKind};
use burn_backend::tensor::{Device, FloatTensor, IntTensor};

use super::{HybridEngine, first};
use crate::op::{Like, Op, Pass};

/// The op of the node.
#[derive(Debug)]
struct Kernel(Op);

impl<B: HybridEngine, const N: usize> Backward<B, N> for Kernel {
    type State = Vec<FloatTensor<B>>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy = grads.consume::<B>(&ops.node);
        let inputs = ops.state.into_iter().chain([dy]).collect();
        let made = B::launch(&self.0, Pass::Backward, inputs, vec![]);
        assert_eq!(made.len(), N, "{}", self.0.name(Pass::Backward));
        for (parent, grad) in ops.parents.into_iter().zip(made) {
            if let Some(node) = parent {
                grads.register::<B>(node.id, grad);
            }
        }
    }
}

impl<B: HybridEngine, C: CheckpointStrategy> HybridEngine for Autodiff<B, C> {
    fn has_kernel(op: &Op, inputs: &[Like], device: &Device<Self>) -> bool {
        B::has_kernel(op, inputs, device)
    }

    fn apply(
        op: Op,
        inputs: Vec<FloatTensor<Self>>,
        ints: Vec<IntTensor<Self>>,
    ) -> FloatTensor<Self> {
        // The number of parents is a const generic of burn-autodiff.
        match inputs.len() {
            1 => node::<B, C, 1>(op, inputs, ints),
            2 => node::<B, C, 2>(op, inputs, ints),
            3 => node::<B, C, 3>(op, inputs, ints),
            4 => node::<B, C, 4>(op, inputs, ints),
            5 => node::<B, C, 5>(op, inputs, ints),
            6 => node::<B, C, 6>(op, inputs, ints),
            7 => node::<B, C, 7>(op, inputs, ints),
            count => unreachable!("no operation has {count} float inputs"),
        }
    }
}

fn node<B: HybridEngine, C: CheckpointStrategy, const N: usize>(
    op: Op,
    inputs: Vec<FloatTensor<Autodiff<B, C>>>,
    ints: Vec<IntTensor<B>>,
) -> FloatTensor<Autodiff<B, C>> {
    let parents: [_; N] = std::array::from_fn(|i| inputs[i].node.clone());
    let inputs: Vec<_> = inputs.into_iter().map(|input| input.primitive).collect();
    let run = |inputs, ints| B::launch(&op, Pass::Forward, inputs, ints);
    match Kernel(op.clone())
        .prepare::<C>(parents)
        .compute_bound()
        .stateful()
    {
        OpsKind::Tracked(prep) => {
            let kept = inputs.iter().enumerate().filter(|(i, _)| op.keeps(*i));
            let mut kept: Vec<_> = kept.map(|(_, input)| input.clone()).collect();
            let mut made = run(inputs, ints).into_iter();
            let result = made.next().expect("an operation has a result");
            kept.extend(made);
            prep.finish(kept, result)
        }
        OpsKind::UnTracked(prep) => prep.finish(first(run(inputs, ints))),
    }
}
