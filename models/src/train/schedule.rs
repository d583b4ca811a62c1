//! Warm-up, stable, decay: the learning rate as a pure function of the step.
//!
//! ```text
//!      peak      ________________
//!               /                \   linear, or minus-sqrt: last + (peak - last) (1 - sqrt(x))
//!              /                  \
//!             /                    \ last
//! step 1 .. warmup | stable | decay .. total
//! ```
//!
//! Step `warmup` is the first at the peak and step `total` the only one at the last rate.
//!
//! Source: arXiv:2509.25149v1 §A.1 (constant, then decay over the last 20 %); the minus-sqrt shape
//! is that of the Nemotron 3 runs (and of arXiv:2405.18392).

use burn::lr_scheduler::LrScheduler;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

/// Shape of the decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DecayShape {
    /// A straight line.
    Linear,
    /// Fast first: `1 - sqrt(x)`.
    MinusSqrt,
}

/// A resolved schedule: all lengths in steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// The rate of the stable phase.
    pub peak: f64,
    /// The rate of the last step.
    pub last: f64,
    /// Steps until the peak.
    pub warmup: u64,
    /// Steps of the decay.
    pub decay: u64,
    /// Steps of the run.
    pub total: u64,
    /// Shape of the decay.
    pub shape: DecayShape,
}

impl Schedule {
    /// The learning rate of a step, counted from 1. Past the end it stays at the last rate.
    pub fn learning_rate(&self, step: u64) -> f64 {
        let decay_start = self.total.saturating_sub(self.decay);
        if step > decay_start && self.decay > 0 {
            let done = ((step - decay_start) as f64 / self.decay as f64).min(1.0);
            let remaining = match self.shape {
                DecayShape::Linear => 1.0 - done,
                DecayShape::MinusSqrt => 1.0 - done.sqrt(),
            };
            self.last + (self.peak - self.last) * remaining
        } else if step < self.warmup {
            self.peak * step as f64 / self.warmup as f64
        } else {
            self.peak
        }
    }
}

/// The schedule as burn's [`LrScheduler`]; its record is the step.
#[derive(Clone, Debug)]
pub struct WarmupStableDecay {
    schedule: Schedule,
    step: u64,
}

impl WarmupStableDecay {
    /// A scheduler after `step` steps.
    pub fn after(schedule: Schedule, step: u64) -> Self {
        Self { schedule, step }
    }
}

impl LrScheduler for WarmupStableDecay {
    type Record<B: Backend> = u64;

    fn step(&mut self) -> f64 {
        self.step += 1;
        self.schedule.learning_rate(self.step)
    }

    fn to_record<B: Backend>(&self) -> u64 {
        self.step
    }

    fn load_record<B: Backend>(mut self, record: u64) -> Self {
        self.step = record;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        peak: 1.0,
        last: 0.2,
        warmup: 4,
        decay: 4,
        total: 12,
        shape: DecayShape::Linear,
    };

    #[test]
    fn the_rate_follows_the_table() {
        let rates: Vec<f64> = (1..=14).map(|step| SCHEDULE.learning_rate(step)).collect();
        let expected = [
            0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2,
        ];
        for (step, (rate, expected)) in rates.iter().zip(expected).enumerate() {
            assert!(
                (rate - expected).abs() < 1e-12,
                "step {}: {rate}, not {expected}",
                step + 1
            );
        }
    }

    #[test]
    fn minus_sqrt_falls_faster_first_and_ends_at_the_same_rate() {
        let sqrt = Schedule {
            shape: DecayShape::MinusSqrt,
            ..SCHEDULE
        };
        // x = 1/4: 0.2 + 0.8 * (1 - 1/2).
        assert!((sqrt.learning_rate(9) - 0.6).abs() < 1e-12);
        assert!((sqrt.learning_rate(12) - 0.2).abs() < 1e-12);
    }

    #[test]
    fn without_warm_up_and_decay_the_rate_is_constant() {
        let flat = Schedule {
            warmup: 0,
            decay: 0,
            ..SCHEDULE
        };
        assert!((1..=20).all(|step| flat.learning_rate(step) == 1.0));
    }

    #[test]
    fn a_scheduler_continues_where_its_record_stood() {
        let mut whole = WarmupStableDecay::after(SCHEDULE, 0);
        let rates: Vec<f64> = (0..12).map(|_| whole.step()).collect();
        let mut rest = WarmupStableDecay::after(SCHEDULE, 5);
        assert_eq!((0..7).map(|_| rest.step()).collect::<Vec<_>>(), rates[5..]);
    }
}
