//! Backward that keeps one tensor per block, and runs each block once more.
//!
//! 1. Embedding and blocks without a graph; the input of each block is kept.
//! 2. The final norm, `lm_head` and the loss, on a graph that begins at the last block's output.
//! 3. From the last block to the first: the block on a graph of its own that begins at its input,
//!    and backward through it from the gradient of its output.
//! 4. The embedding likewise.
//!
//! The gradients have the bits that one graph gives: each block adds its two gradients of the
//! residual stream in the same order, and random bits are a function of seed, step and operand, so
//! a block that runs again draws the same. Layer names and an open precision scope hold in the
//! second run as in the first, because both happen inside of one call.
//!
//! Not a node of one graph: burn-autodiff 0.21 ends each backward by locking every graph there is,
//! and the outer graph is locked by the backward that would be running, so a backward inside of
//! another waits for itself.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor};
use burn_hybrid_ops::TrainingEngine;
use serde::{Deserialize, Serialize};

use super::HybridLm;
use crate::nn::pass::Pass;

/// What backward computes again instead of keeping it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing: every operation keeps what its gradient needs.
    #[default]
    None,
    /// Each block, from its input: a third more time, the activations of one block.
    Blocks,
}

impl<B: TrainingEngine> HybridLm<B> {
    /// A loss of what [`Self::forward_hidden`] gives, and the gradients of all parameters, with the
    /// activations of no more than one block in memory at a time.
    pub(crate) fn backward_by_blocks(
        &self,
        ids: Tensor<B, 2, Int>,
        loss: impl FnOnce(Tensor<B, 3>) -> Tensor<B, 1>,
    ) -> (Tensor<B::InnerBackend, 1>, GradientsParams) {
        let pass = || Pass::new(self.activation_dtype());
        let mut inputs = self.inputs_of_blocks(ids.clone().inner());
        let mut gradients = GradientsParams::new();

        let top = leaf(inputs.pop().expect("the output of the last block"));
        let loss = loss(self.norm_f.forward(top.clone(), pass().dtype()));
        let mut grads = loss.backward();
        let mut dh = gradient_of(&top, &mut grads);
        take::<B, _>(&self.norm_f, &mut grads, &mut gradients);
        take::<B, _>(&self.lm_head, &mut grads, &mut gradients);

        for (block, input) in self.layers.iter().zip(inputs).rev() {
            let input = leaf(input);
            let output = block.forward(input.clone(), None, &mut pass());
            let mut grads = backward_from(output, dh);
            dh = gradient_of(&input, &mut grads);
            take::<B, _>(block, &mut grads, &mut gradients);
        }
        let mut grads = backward_from(self.embed(ids, pass().dtype()), dh);
        take::<B, _>(&self.embeddings, &mut grads, &mut gradients);
        (loss.inner(), gradients)
    }

    /// The residual stream before each block and behind the last, without a graph.
    fn inputs_of_blocks(
        &self,
        ids: Tensor<B::InnerBackend, 2, Int>,
    ) -> Vec<Tensor<B::InnerBackend, 3>> {
        let model = self.valid();
        let mut pass = Pass::new(model.activation_dtype());
        let mut stream = vec![model.embed(ids, pass.dtype())];
        for block in &model.layers {
            let h = stream.last().expect("it begins with the embedding").clone();
            stream.push(block.forward(h, None, &mut pass));
        }
        stream
    }
}

/// A tensor that a graph begins at.
fn leaf<B: AutodiffBackend>(h: Tensor<B::InnerBackend, 3>) -> Tensor<B, 3> {
    Tensor::from_inner(h).require_grad()
}

/// Backward from `dy`, the gradient of `y`.
fn backward_from<B: AutodiffBackend>(
    y: Tensor<B, 3>,
    dy: Tensor<B::InnerBackend, 3>,
) -> B::Gradients {
    // Burn begins with ones of the shape of the root, and one times `dy` is exact.
    (y * Tensor::from_inner(dy)).backward()
}

fn gradient_of<B: AutodiffBackend>(
    h: &Tensor<B, 3>,
    grads: &mut B::Gradients,
) -> Tensor<B::InnerBackend, 3> {
    let gradient = h.grad_remove(grads);
    gradient.expect("the residual stream reaches every block's output")
}

/// Moves the gradients of a part of the model to those of the whole.
fn take<B: AutodiffBackend, M: AutodiffModule<B>>(
    part: &M,
    grads: &mut B::Gradients,
    into: &mut GradientsParams,
) {
    part.visit(&mut Take::<B> { grads, into });
}

struct Take<'a, B: AutodiffBackend> {
    grads: &'a mut B::Gradients,
    into: &'a mut GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Take<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = param.val().grad_remove(self.grads) {
            self.into.register::<B::InnerBackend, D>(param.id, gradient);
        }
    }
}
