//! What the loop tells the backend about the run, and what it asks after a step.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};

use burn::tensor::backend::Backend;
use burn_nvfp4::recipe::{Policy, Progress, RecipeError, presets};
use burn_nvfp4::renewal::{kept_amaxes, set_kept_amaxes};

use super::layers::{GemmFigure, OperandFigure, Statistics};

/// How the arithmetic of a backend follows the run.
pub trait Numerics: Debug + Send + Sync {
    /// Called before each step: `step` of `total`, counted from 0. Random bits and a policy that
    /// changes over the run depend on nothing else.
    fn begin_step(&self, step: u64, total: u64);

    /// Numbers that the arithmetic carries from step to step, by name: what a checkpoint keeps, so
    /// that a resumed run goes on to the same bits.
    fn carried(&self) -> BTreeMap<String, f32> {
        BTreeMap::new()
    }

    /// Puts in the place of those numbers what a checkpoint has of them; answers with the names
    /// that it does not know.
    fn take_up(&self, numbers: BTreeMap<String, f32>) -> Vec<String> {
        numbers.into_keys().collect()
    }

    /// The first operand since the last call that held NaN or infinity when it was quantized:
    /// layer and operand.
    fn take_non_finite(&self) -> Option<String>;

    /// What quantization did to the operands of the step that is over, if it was sampled, and how
    /// its GEMMs ran where that is news; nothing where nothing is measured.
    fn take_statistics(&self) -> Statistics {
        Statistics::default()
    }

    /// Calls `pass`, forward and backward of a micro-batch of the step, counted over all ranks.
    fn in_micro_batch(&self, _index: u32, pass: &mut dyn FnMut()) {
        pass();
    }

    /// Calls `passes`, forward and backward of several micro-batches between which no weight
    /// changes.
    fn share_weights(&self, passes: &mut dyn FnMut()) {
        passes();
    }

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

/// A backend under `Nvfp4`: policy and seed are set once, the step before every step.
#[derive(Debug)]
pub struct Quantized<B: Backend> {
    device: B::Device,
    statistics_every: Option<NonZeroU64>,
    /// The GEMMs that were told last. They change where a policy changes over the run.
    told: Mutex<Vec<GemmFigure>>,
}

impl<B: Backend> Quantized<B> {
    /// Sets policy and seed of `device`, and has its operands watched: NaN that is quantized
    /// becomes a number (numerics §1) and would not show in the loss.
    ///
    /// # Errors
    /// [`RecipeError`] if the policy cannot be used.
    pub fn new(device: B::Device, policy: Policy, seed: u64) -> Result<Self, RecipeError> {
        burn_nvfp4::set_policy::<B>(&device, policy)?;
        burn_nvfp4::set_seed::<B>(&device, seed);
        burn_nvfp4::set_watch::<B>(&device, true);
        burn_nvfp4::take_non_finite::<B>(&device);
        burn_nvfp4::stats::set_sampling::<B>(&device, None);
        set_kept_amaxes::<B>(&device, BTreeMap::new());
        Ok(Self {
            device,
            statistics_every: None,
            told: Mutex::default(),
        })
    }

    /// Has every operand measured in each step whose number, counted from 0, is a multiple of
    /// `every`; `None`: never.
    pub fn with_statistics(self, every: Option<NonZeroU64>) -> Self {
        burn_nvfp4::stats::set_sampling::<B>(&self.device, every);
        Self {
            statistics_every: every,
            ..self
        }
    }
}

impl<B: Backend> Numerics for Quantized<B> {
    fn begin_step(&self, step: u64, total: u64) {
        burn_nvfp4::set_progress::<B>(&self.device, Progress { step, total });
    }

    fn carried(&self) -> BTreeMap<String, f32> {
        kept_amaxes::<B>(&self.device)
    }

    fn take_up(&self, numbers: BTreeMap<String, f32>) -> Vec<String> {
        set_kept_amaxes::<B>(&self.device, numbers);
        Vec::new()
    }

    fn take_non_finite(&self) -> Option<String> {
        burn_nvfp4::take_non_finite::<B>(&self.device)
            .map(|found| format!("{} of {}", found.operand, found.layer))
    }

    fn take_statistics(&self) -> Statistics {
        let step = burn_nvfp4::progress::<B>(&self.device).step;
        // Taking them waits for the device, so steps without any are left alone.
        let is_measured = |every: NonZeroU64| step.is_multiple_of(every.get());
        if !self.statistics_every.is_some_and(is_measured) {
            return Statistics::default();
        }
        let samples = burn_nvfp4::stats::take_samples::<B>(&self.device);
        let operands = samples.operands.into_iter().map(OperandFigure::from);
        let gemms: Vec<_> = samples.gemms.into_iter().map(GemmFigure::from).collect();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = *told != gemms;
        if is_news {
            told.clone_from(&gemms);
        }
        Statistics {
            operands: operands.collect(),
            gemms: if is_news { gemms } else { Vec::new() },
        }
    }

    fn in_micro_batch(&self, index: u32, pass: &mut dyn FnMut()) {
        burn_nvfp4::micro_batch(index, pass);
    }

    fn share_weights(&self, passes: &mut dyn FnMut()) {
        burn_nvfp4::shared_weights(passes);
    }

    fn in_high_precision(&self, forward: &mut dyn FnMut()) {
        burn_nvfp4::precision(presets::HIGH_PRECISION, forward);
    }
}
