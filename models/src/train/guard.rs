//! Which steps update the model: not those with a number that is none, and, as an option, not those
//! whose loss leaves the others far behind.
//!
//! 1. A step whose loss, gradient norm or a quantized operand is NaN or infinite leaves the model
//!    as it is. Enough of them in a row stop the run.
//! 2. With a spike guard, a loss beyond `mean + sigmas * deviation` of the latest `window` losses
//!    is an outlier. Its update is left out (the rule of OLMo-core's `SkipStepOptimizer`, there
//!    with 128 losses and 6 deviations), or, after some in a row, the run goes back to its newest
//!    checkpoint and on with other data (as PaLM's authors did by hand, arXiv:2204.02311 §5.1).
//!
//! All that the guard remembers stands in the [`Position`], hence in checkpoints: a resumed run
//! judges as the uninterrupted one.

use serde::{Deserialize, Serialize};

use crate::checkpoint::run::Position;

/// Longest window: its losses are written with every checkpoint.
const MAX_WINDOW: usize = 1 << 16;

/// Which steps do not update the model, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuardConfig {
    /// So many steps in a row with NaN or infinity stop the run.
    pub non_finite_in_a_row: u64,
    /// What happens to losses that leave the others far behind; absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spike: Option<SpikeGuard>,
}

/// Which losses are outliers, and what happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpikeGuard {
    /// How many of the latest losses a loss is compared with.
    pub window: usize,
    /// How many standard deviations above their mean it may be.
    pub sigmas: f64,
    /// What happens to an outlier.
    pub action: SpikeAction,
}

/// What happens to an outlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SpikeAction {
    /// Its update is left out.
    Skip,
    /// The run goes back to its newest checkpoint and on with the data after the outlier.
    Rewind {
        /// After so many in a row; those before it update the model.
        in_a_row: u64,
        /// So often in a run; then the run stops.
        at_most: u64,
    },
}

/// What a step is worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It updates the model.
    Update,
    /// It has NaN or infinity in it.
    NonFinite,
    /// Its loss is an outlier, beyond this limit, and its update is left out.
    Skip {
        /// Largest loss that is none.
        limit: f64,
    },
    /// Its loss is one outlier too many, beyond this limit: the run goes back.
    Rewind {
        /// Largest loss that is none.
        limit: f64,
    },
}

impl GuardConfig {
    /// What makes no sense in it: field, value, what would be right.
    pub fn problem(&self) -> Option<(&'static str, String, String)> {
        let problem = |field, value: String, expected: &str| Some((field, value, expected.into()));
        if self.non_finite_in_a_row == 0 {
            return problem("guard.non_finite_in_a_row", "0".into(), "at least 1");
        }
        let spike = self.spike?;
        if !(2..=MAX_WINDOW).contains(&spike.window) {
            let expected = format!("from 2 to {MAX_WINDOW}");
            return problem("guard.spike.window", spike.window.to_string(), &expected);
        }
        if !(spike.sigmas.is_finite() && spike.sigmas > 0.0) {
            return problem("guard.spike.sigmas", spike.sigmas.to_string(), "positive");
        }
        match spike.action {
            SpikeAction::Rewind { in_a_row: 0, .. } => problem(
                "guard.spike.action.rewind.in_a_row",
                "0".into(),
                "at least 1",
            ),
            SpikeAction::Skip | SpikeAction::Rewind { .. } => None,
        }
    }

    /// Judges the step that is just over and notes it in `position`.
    pub fn judge(&self, position: &mut Position, loss: f64, is_finite: bool) -> Verdict {
        if !is_finite {
            position.non_finite_in_a_row += 1;
            position.skipped += 1;
            return Verdict::NonFinite;
        }
        position.non_finite_in_a_row = 0;
        let Some(spike) = self.spike else {
            return Verdict::Update;
        };
        let outlier = spike.limit(position).filter(|limit| loss > *limit);
        let Some(limit) = outlier else {
            position.outliers_in_a_row = 0;
            spike.remember(position, loss);
            return Verdict::Update;
        };
        position.outliers_in_a_row += 1;
        match spike.action {
            SpikeAction::Skip => {
                position.skipped += 1;
                // Remembered all the same: the deviation grows with each, so that losses which
                // stay up are not left out for ever.
                spike.remember(position, loss);
                Verdict::Skip { limit }
            }
            SpikeAction::Rewind { in_a_row, .. } if position.outliers_in_a_row < in_a_row => {
                Verdict::Update
            }
            SpikeAction::Rewind { .. } => Verdict::Rewind { limit },
        }
    }
}

impl SpikeGuard {
    /// The largest loss that is not an outlier; none until the window is full.
    fn limit(&self, position: &Position) -> Option<f64> {
        let losses = &position.recent_losses;
        if losses.len() < self.window {
            return None;
        }
        let count = losses.len() as f64;
        let values = || losses.iter().map(|bits| f64::from_bits(*bits));
        let mean = values().sum::<f64>() / count;
        let variance = values().map(|loss| (loss - mean).powi(2)).sum::<f64>() / count;
        Some(mean + self.sigmas * variance.sqrt())
    }

    fn remember(&self, position: &mut Position, loss: f64) {
        let losses = &mut position.recent_losses;
        losses.push_back(loss.to_bits());
        while losses.len() > self.window {
            losses.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(action: SpikeAction) -> GuardConfig {
        let spike = SpikeGuard {
            window: 4,
            sigmas: 3.0,
            action,
        };
        GuardConfig {
            non_finite_in_a_row: 2,
            spike: Some(spike),
        }
    }

    /// Judges finite losses one after the other.
    fn judge(guard: &GuardConfig, position: &mut Position, losses: &[f64]) -> Vec<Verdict> {
        let one = |loss: &f64| guard.judge(position, *loss, true);
        losses.iter().map(one).collect()
    }

    const UPDATE: Verdict = Verdict::Update;

    #[test]
    fn the_limit_is_mean_and_deviations_of_a_full_window() {
        let guard = guard(SpikeAction::Skip);
        let mut position = Position::default();
        // No limit yet, whatever comes.
        let verdicts = judge(&guard, &mut position, &[1.0, 3.0, 1.0, 3.0]);
        assert_eq!(verdicts, [UPDATE; 4]);
        // Mean 2, deviation 1: the limit is 5.
        assert_eq!(judge(&guard, &mut position, &[5.0]), [UPDATE]);
        let mut position = Position::default();
        judge(&guard, &mut position, &[1.0, 3.0, 1.0, 3.0]);
        let verdict = judge(&guard, &mut position, &[5.1]);
        assert_eq!(verdict, [Verdict::Skip { limit: 5.0 }]);
        assert_eq!((position.skipped, position.outliers_in_a_row), (1, 1));
    }

    #[test]
    fn losses_that_stay_up_are_not_left_out_for_ever() {
        let guard = guard(SpikeAction::Skip);
        let mut position = Position::default();
        judge(&guard, &mut position, &[1.0, 1.1, 1.0, 1.1]);
        let verdicts = judge(&guard, &mut position, &[9.0; 8]);
        assert!(matches!(verdicts[0], Verdict::Skip { .. }));
        assert_eq!(verdicts[7], UPDATE);
    }

    #[test]
    fn a_rewind_waits_for_its_number_of_outliers_and_they_do_not_move_the_limit() {
        let guard = guard(SpikeAction::Rewind {
            in_a_row: 3,
            at_most: 1,
        });
        let mut position = Position::default();
        judge(&guard, &mut position, &[1.0, 3.0, 1.0, 3.0]);
        let verdicts = judge(&guard, &mut position, &[6.0, 6.0, 2.0, 6.0]);
        assert_eq!(verdicts, [UPDATE; 4], "one in between ends the row");
        let verdicts = judge(&guard, &mut position, &[6.0, 6.0]);
        assert_eq!(verdicts[0], UPDATE);
        assert!(
            matches!(verdicts[1], Verdict::Rewind { .. }),
            "{verdicts:?}"
        );
    }

    #[test]
    fn non_finite_steps_are_counted_in_all_and_in_a_row() {
        let guard = guard(SpikeAction::Skip);
        let mut position = Position::default();
        for (finite, in_a_row, skipped) in
            [(false, 1, 1), (false, 2, 2), (true, 0, 2), (false, 1, 3)]
        {
            guard.judge(&mut position, 1.0, finite);
            let counted = (position.non_finite_in_a_row, position.skipped);
            assert_eq!(counted, (in_a_row, skipped));
        }
        assert_eq!(
            position.recent_losses.len(),
            1,
            "a NaN is not compared with"
        );
    }

    #[test]
    fn a_guard_reads_as_data() {
        let text = "non_finite_in_a_row = 2\n[spike]\nwindow = 4\nsigmas = 3.0\n";
        let skip: GuardConfig = toml::from_str(&format!("{text}action = \"skip\"")).unwrap();
        assert_eq!(skip, guard(SpikeAction::Skip));
        let rewind = "action = { rewind = { in_a_row = 3, at_most = 1 } }";
        let rewind: GuardConfig = toml::from_str(&format!("{text}{rewind}")).unwrap();
        let (in_a_row, at_most) = (3, 1);
        assert_eq!(rewind, guard(SpikeAction::Rewind { in_a_row, at_most }));
        assert_eq!(rewind.problem(), None);
        let none = guard(SpikeAction::Rewind {
            in_a_row: 0,
            at_most,
        });
        assert!(none.problem().unwrap().0.ends_with("in_a_row"));
    }
}
