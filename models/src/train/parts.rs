//! Backward in parts: less in memory at a time.
//!
//! With [`Recompute::Blocks`]:
//! 1. Embedding and blocks without a graph; the input of each block is kept.
//! 2. The final norm, `lm_head` and the loss, on graphs that begin at the last block's output.
//! 3. From the last block to the first: the block on a graph of its own that begins at its input,
//!    and backward through it from the gradient of its output.
//! 4. The embedding likewise.
//!
//! The gradients have the bits that one graph gives: each block adds its two gradients of the
//! residual stream in the same order, and random bits are a function of seed, step and operand, so
//! a block that runs again draws the same. Layer names and an open precision scope hold in the
//! second run as in the first, because both happen inside of one call.
//!
//! With `loss_chunk` in its [`StepMemory`](crate::hybrid::step_memory::StepMemory) a model has
//! `lm_head` and the loss run forward and backward on some tokens after others, so
//! `[tokens, vocab]` is never there at once, in no dtype.
//!
//! Neither is a node of one graph: burn-autodiff 0.21 ends each backward by locking every graph
//! there is, and the outer graph is locked by the backward that would be running, so a backward
//! inside of another waits for itself.

use std::num::NonZeroUsize;

use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::backend::AutodiffBackend;
use burn::tensor::{Int, Tensor};
use burn_hybrid_ops::TrainingEngine;

use super::loss::loss_of_hidden;
use crate::data::TokenBatch;
use crate::hybrid::HybridLm;
use crate::hybrid::step_memory::Recompute;
use crate::nn::pass::Pass;

/// Mean next-token loss, and the gradients of all parameters, in parts as the model says.
pub(super) fn loss_and_gradients<B: TrainingEngine>(
    model: &HybridLm<B>,
    batch: TokenBatch<B>,
) -> (Tensor<B::InnerBackend, 1>, GradientsParams) {
    let TokenBatch { inputs, targets } = batch;
    let mut gradients = GradientsParams::new();
    let loss = match model.step_memory().recompute {
        Recompute::None => {
            let hidden = model.forward_hidden(inputs);
            let (loss, d_hidden) = head(model, hidden.clone().inner(), targets, &mut gradients);
            take(model, &mut backward_from(hidden, d_hidden), &mut gradients);
            loss
        }
        Recompute::Blocks => by_blocks(model, inputs, targets, &mut gradients),
    };
    (loss, gradients)
}

fn by_blocks<B: TrainingEngine>(
    model: &HybridLm<B>,
    ids: Tensor<B, 2, Int>,
    targets: Tensor<B, 2, Int>,
    gradients: &mut GradientsParams,
) -> Tensor<B::InnerBackend, 1> {
    let dtype = model.activation_dtype();
    let mut inputs = inputs_of_blocks(model, ids.clone().inner());

    let top = leaf(inputs.pop().expect("the output of the last block"));
    let hidden = model.norm_f.forward(top.clone(), dtype);
    let (loss, d_hidden) = head(model, hidden.clone().inner(), targets, gradients);
    let mut grads = backward_from(hidden, d_hidden);
    let mut dh = gradient_of(&top, &mut grads);
    take(&model.norm_f, &mut grads, gradients);

    for (block, input) in model.layers.iter().zip(inputs).rev() {
        let input = leaf(input);
        let output = block.forward(input.clone(), None, &mut Pass::new(dtype));
        let mut grads = backward_from(output, dh);
        dh = gradient_of(&input, &mut grads);
        take(block, &mut grads, gradients);
    }
    let mut grads = backward_from(model.embed(ids, dtype), dh);
    take(&model.embeddings, &mut grads, gradients);
    loss
}

/// The residual stream before each block and behind the last, without a graph.
fn inputs_of_blocks<B: TrainingEngine>(
    model: &HybridLm<B>,
    ids: Tensor<B::InnerBackend, 2, Int>,
) -> Vec<Tensor<B::InnerBackend, 3>> {
    let model = model.valid();
    let mut pass = Pass::new(model.activation_dtype());
    let mut stream = vec![model.embed(ids, pass.dtype())];
    for block in &model.layers {
        let h = stream.last().expect("it begins with the embedding").clone();
        stream.push(block.forward(h, None, &mut pass));
    }
    stream
}

/// Some of the tokens that `lm_head` sees.
struct Part<B: AutodiffBackend> {
    hidden: Tensor<B::InnerBackend, 3>,
    targets: Tensor<B, 2, Int>,
    /// Among all tokens.
    share: f64,
}

/// All tokens in parts of `chunk`.
fn parts_of<B: AutodiffBackend>(
    hidden: Tensor<B::InnerBackend, 3>,
    targets: Tensor<B, 2, Int>,
    chunk: Option<NonZeroUsize>,
) -> Vec<Part<B>> {
    let [batch, seq, d_model] = hidden.dims();
    let tokens = batch * seq;
    let Some(chunk) = chunk.map(NonZeroUsize::get).filter(|it| *it < tokens) else {
        // In its own shape: Burn's linear sums the gradient of a weight sequence by sequence.
        let share = 1.0;
        return vec![Part {
            hidden,
            targets,
            share,
        }];
    };
    let hidden = hidden.reshape([1, tokens, d_model]);
    let targets = targets.reshape([1, tokens]);
    let part = |begin: usize| {
        let count = chunk.min(tokens - begin);
        Part {
            hidden: hidden.clone().narrow(1, begin, count),
            targets: targets.clone().narrow(1, begin, count),
            share: count as f64 / tokens as f64,
        }
    };
    (0..tokens).step_by(chunk).map(part).collect()
}

/// Mean loss of what `lm_head` sees, and the gradient of that; the gradients of `lm_head` go to the
/// others.
fn head<B: TrainingEngine>(
    model: &HybridLm<B>,
    hidden: Tensor<B::InnerBackend, 3>,
    targets: Tensor<B, 2, Int>,
    gradients: &mut GradientsParams,
) -> (Tensor<B::InnerBackend, 1>, Tensor<B::InnerBackend, 3>) {
    let shape = hidden.dims();
    let mut of_lm_head = GradientsAccumulator::new();
    let mut losses = Vec::new();
    let mut d_hidden = Vec::new();
    for part in parts_of::<B>(hidden, targets, model.step_memory().loss_chunk) {
        let hidden = leaf(part.hidden);
        let mean = loss_of_hidden(model, hidden.clone(), part.targets);
        let loss = mean * part.share;
        losses.push(loss.clone().inner());
        let mut grads = loss.backward();
        d_hidden.push(gradient_of(&hidden, &mut grads));
        let grads = GradientsParams::from_grads(grads, &model.lm_head);
        of_lm_head.accumulate(&model.lm_head, grads);
    }
    let mut of_lm_head = of_lm_head.grads();
    model.lm_head.visit(&mut Move {
        from: &mut of_lm_head,
        into: gradients,
    });
    let loss = losses.into_iter().reduce(|sum, loss| sum + loss);
    let loss = loss.expect("a batch has a token");
    (loss, Tensor::cat(d_hidden, 1).reshape(shape))
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
    gradient.expect("the residual stream reaches the loss")
}

/// Moves the gradients of a part of the model from a graph's to those of the whole.
fn take<B: AutodiffBackend, M: AutodiffModule<B>>(
    part: &M,
    grads: &mut B::Gradients,
    into: &mut GradientsParams,
) {
    let mut from = GradientsParams::from_module(grads, part);
    let from = &mut from;
    part.visit(&mut Move { from, into });
}

/// Moves the gradients of a module from one collection to another.
struct Move<'a> {
    from: &'a mut GradientsParams,
    into: &'a mut GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Move<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.from.remove::<B::InnerBackend, D>(param.id) {
            self.into.register(param.id, gradient);
        }
    }
}
