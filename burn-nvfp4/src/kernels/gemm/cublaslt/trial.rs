//! How much of a first call goes into finding the fastest algorithm, and what was found.

use super::plan::{MatmulPlan, Operation};

/// Algorithms that the heuristic is asked for.
pub(super) const OFFERS: usize = 8;
/// Timed runs of each, after one that is not timed.
const RUNS: u32 = 3;
/// What all trials of a shape may take together, in milliseconds.
const BUDGET_MS: f64 = 200.0;

/// How many algorithms are tried, and how often each is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trials {
    pub(super) candidates: usize,
    pub(super) runs: u32,
}

impl Trials {
    /// Spends at most the budget, given what the first algorithm took: fewer runs first, then fewer
    /// algorithms; one algorithm means that none is compared.
    pub(super) fn within_budget(first_ms: f32, offers: usize) -> Self {
        let ms = f64::from(first_ms).max(1e-6);
        let affordable = |runs: u32| {
            let tries = BUDGET_MS / (ms * f64::from(runs + 1));
            (1..=offers).rev().find(|&n| n as f64 <= tries).unwrap_or(1)
        };
        if affordable(RUNS) == offers {
            return Self {
                candidates: offers,
                runs: RUNS,
            };
        }
        Self {
            candidates: affordable(1),
            runs: 1,
        }
    }
}

/// What was chosen for a product.
#[derive(Clone, Debug)]
pub struct ChosenAlgorithm {
    /// Index of the device.
    pub device: usize,
    /// The product.
    pub plan: MatmulPlan,
    /// Place among what the heuristic offered, from 0.
    pub index: usize,
    /// How many the heuristic offered.
    pub offered: usize,
    /// How many were timed.
    pub tried: usize,
    /// Mean of the timed runs; `None` if nothing was timed.
    pub milliseconds: Option<f32>,
    /// Workspace of the algorithm.
    pub workspace_bytes: usize,
}

impl ChosenAlgorithm {
    /// `[m, n, k]`.
    pub const fn dims(&self) -> [u64; 3] {
        self.plan.dims()
    }

    /// TFLOP/s, if it was timed.
    pub fn tflops(&self) -> Option<f64> {
        let ms = self.milliseconds?;
        Some(self.plan.flops() / f64::from(ms) * 1e-9)
    }
}

impl std::fmt::Display for ChosenAlgorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [m, n, k] = self.dims();
        let letter = |operation| match operation {
            Operation::None => 'N',
            Operation::Transpose => 'T',
        };
        let (a, b) = (letter(self.plan.transa), letter(self.plan.transb));
        let (operands, out) = (self.plan.a.dtype, self.plan.d.dtype);
        write!(f, "{m}x{n}x{k} {a}{b} {operands:?} to {out:?}: ")?;
        match (self.milliseconds, self.tflops()) {
            (Some(ms), Some(rate)) => write!(f, "{ms:.3} ms, {rate:.0} TFLOP/s, ")?,
            (None, _) | (_, None) => write!(f, "not timed, ")?,
        }
        let (index, offered, tried) = (self.index, self.offered, self.tried);
        write!(f, "algorithm {index} of {offered}, {tried} tried")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trials_of_small_products_are_complete() {
        for ms in [0.0, 0.01, 2.5, 6.2] {
            let trials = Trials::within_budget(ms, 8);
            assert_eq!((trials.candidates, trials.runs), (8, 3), "{ms} ms");
        }
    }

    #[test]
    fn trials_stay_within_the_budget() {
        for ms in [6.3, 10.0, 12.5, 20.0, 40.0, 99.0] {
            let Trials { candidates, runs } = Trials::within_budget(ms, 8);
            let spent = ms * candidates as f32 * (runs + 1) as f32;
            assert!(spent <= 200.0 && candidates > 1, "{ms} ms: {spent}");
        }
        assert_eq!(Trials::within_budget(150.0, 8).candidates, 1);
        assert_eq!(Trials::within_budget(f32::INFINITY, 8).candidates, 1);
        assert_eq!(Trials::within_budget(1.0, 1).candidates, 1);
    }
}
