//! What the loop tells the backend about the run, and what it asks after a step.

use std::fmt::Debug;

/// How the arithmetic of a backend follows the run.
pub trait Numerics: Debug {
    /// Called before each step: `step` of `total`, counted from 0. Random bits and a policy that
    /// changes over the run depend on nothing else.
    fn begin_step(&self, step: u64, total: u64);

    /// The first operand since the last call that held NaN or infinity when it was quantized:
    /// layer and operand.
    fn take_non_finite(&self) -> Option<String>;

    /// Calls `forward` with every linear in high precision.
    fn in_high_precision(&self, forward: &mut dyn FnMut());
}

/// A backend that takes no notice: no quantization, no random rounding.
#[derive(Clone, Copy, Debug)]
pub struct Unquantized;

impl Numerics for Unquantized {
    fn begin_step(&self, _step: u64, _total: u64) {}

    fn take_non_finite(&self) -> Option<String> {
        None
    }

    fn in_high_precision(&self, forward: &mut dyn FnMut()) {
        forward();
    }
}
