//! What a training step keeps in memory, and what it computes again or in parts instead.

use std::num::NonZeroUsize;

use serde::{Deserialize, Serialize};

/// What a training step keeps; by default everything that backward needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepMemory {
    /// What backward computes again instead of keeping it. No number depends on it.
    #[serde(default)]
    pub recompute: Recompute,
    /// Tokens that go through `lm_head` and the loss at a time; absent: all of a micro-batch. Sums
    /// over tokens are rounded in another order, and a quantized `lm_head` sees each part by
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_chunk: Option<NonZeroUsize>,
}

/// What backward computes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// Each block, from its input: about a third more time, the activations of one block.
    Blocks,
}
