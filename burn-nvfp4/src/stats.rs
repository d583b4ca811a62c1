//! What quantization does to a run: samples of its operands, and a table of its GEMMs.
//!
//! [`set_sampling`] has every n-th step sampled on a device. In such a step each linear measures
//! each operand that it quantizes, once ([`OperandSample`]), and notes which GEMM ran in which
//! formats by which routine ([`GemmSample`]); [`take_samples`] hands out what came together. All of
//! it is plain data.
//!
//! A step that is not sampled costs nothing. One that is quantizes each operand a second time, by
//! the executable specification: on a CPU where the tensor lies, on other devices from a copy that
//! is read back, which waits for the device. Of an operand with more than 2^17 elements about as
//! many are measured, tiles of 128 x 128 from all over it, under the tensor amax of the whole;
//! under their own where rows have scales of their own, or the correction of EDEN. Of several
//! micro-batches the first is measured.
//!
//! Apart from samples, [`kept_bytes`] says what linears keep for backward, always and at no cost.
//!
//! How weights oscillate takes more than one step: [`crate::oscillation`].

use std::borrow::Cow;
use std::collections::HashSet;
use std::num::NonZeroU64;

use burn_backend::Backend;
use serde::{Deserialize, Serialize};

use crate::runtime;

mod kept;
mod measure;

pub(crate) use kept::Counted;
pub use kept::{KeptBytes, kept_bytes};
pub use measure::{ErrorSums, OperandStatistics};

/// Samples that a device keeps until they are taken; later ones are counted and dropped.
const MOST_SAMPLES: usize = 1 << 16;

/// One operand of one GEMM in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperandSample {
    /// Optimizer step.
    pub step: u64,
    /// Layer; absent outside every layer scope.
    pub layer: Option<String>,
    /// GEMM and side, e.g. `wgrad.rhs`.
    pub operand: Cow<'static, str>,
    /// How it is quantized, in words.
    pub format: String,
    /// What that did.
    pub statistics: OperandStatistics,
}

/// One GEMM in one step, as it ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GemmSample {
    /// Optimizer step.
    pub step: u64,
    /// Layer; absent outside every layer scope.
    pub layer: Option<String>,
    /// `fprop`, `dgrad` or `wgrad`.
    pub gemm: Cow<'static, str>,
    /// Format of the left operand, in words.
    pub lhs: String,
    /// Format of the right operand, in words.
    pub rhs: String,
    /// What multiplied them.
    pub routine: Cow<'static, str>,
}

/// What a device has sampled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Samples {
    /// Operands, in the order in which they were quantized.
    pub operands: Vec<OperandSample>,
    /// GEMMs, in the order in which they ran.
    pub gemms: Vec<GemmSample>,
    /// Samples that came after the memory for them was full.
    pub dropped: u64,
}

/// Has every `every`-th step on `device` sampled, step 0 included; `None` ends it.
///
/// Linears read this with the step that [`set_progress`](crate::set_progress) told, when they are
/// called forward.
pub fn set_sampling<B: Backend>(device: &B::Device, every: Option<NonZeroU64>) {
    runtime::set_sampling::<B>(device, every);
    // Another run may be at the same step.
    runtime::with_samples::<B, _>(device, |store| store.seen.clear());
}

/// The samples of `device` since the last call.
///
/// Waits until operations that a backend has only recorded so far have run.
pub fn take_samples<B: Backend>(device: &B::Device) -> Samples {
    // A device that cannot be waited for has failed, and whatever reads a result next says how.
    let _ = B::sync(device);
    runtime::with_samples::<B, _>(device, |store| std::mem::take(&mut store.samples))
}

/// What a device keeps of samples.
#[derive(Debug, Default)]
pub(crate) struct SampleStore {
    samples: Samples,
    /// The step of `seen`.
    step: u64,
    /// Layers and operands or GEMMs of the step that are there.
    seen: HashSet<(Option<String>, &'static str)>,
}

impl SampleStore {
    /// True once for each layer and operand or GEMM of a step.
    pub(crate) fn is_first(&mut self, step: u64, layer: Option<&str>, what: &'static str) -> bool {
        if self.step != step {
            self.step = step;
            self.seen.clear();
        }
        self.seen.insert((layer.map(str::to_owned), what))
    }

    pub(crate) fn add_operand(&mut self, sample: OperandSample) {
        if self.samples.operands.len() < MOST_SAMPLES {
            self.samples.operands.push(sample);
        } else {
            self.samples.dropped += 1;
        }
    }

    pub(crate) fn add_gemm(&mut self, sample: GemmSample) {
        if self.samples.gemms.len() < MOST_SAMPLES {
            self.samples.gemms.push(sample);
        } else {
            self.samples.dropped += 1;
        }
    }
}
