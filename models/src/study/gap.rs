//! Gaps between two runs over the steps, in percent of the reference's loss.
//!
//! 1. Runs of the same data and seed see the same batch in the same step. So the differences of
//!    their training losses are paired, and the noise of the batches, which is much larger than any
//!    gap, falls out of them.
//! 2. The gap at step t is the mean difference over the last `window` steps that both runs have, in
//!    percent of the reference's mean loss over the same steps. It begins at the first full window.
//! 3. A run that went back to a checkpoint goes on with other batches: nothing is paired from there
//!    on.
//! 4. Validations at equal steps read the same windows and are compared as they are.
//! 5. The gap at the end of training is that of step 2 over the last 15 % of the steps ([`tail`]),
//!    by their numbers: of a step without an update there is no pair, and the others stay. It is of
//!    runs that are whole and never went back. It measures hundreds of batches where a validation
//!    measures one set of windows, so it is the sharper of the two; but what a run remembers of
//!    text that it has seen before is in it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::record::{Loss, RunRecord, StepPoint};

/// A smoothing window is one in so many of a run's steps.
const WINDOW: u64 = 20;

/// So many hundredths of a run's steps are its end.
const TAIL: u64 = 15;

/// A gap at a step: over the seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GapPoint {
    /// The step.
    pub step: u64,
    /// Mean over the seeds, percent.
    pub mean: f64,
    /// Lowest of the seeds.
    pub low: f64,
    /// Highest of the seeds.
    pub high: f64,
}

/// The gaps of an arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GapCurve {
    /// The arm.
    pub arm: String,
    /// From training losses, smoothed.
    pub training: Vec<GapPoint>,
    /// From validations in the recipe's forward.
    pub validation: Vec<GapPoint>,
}

/// Steps of the smoothing window of a run of so many steps.
pub fn window(steps: u64) -> usize {
    usize::try_from(steps / WINDOW).unwrap_or(usize::MAX).max(1)
}

/// Steps at the end of a run of so many steps over which its last training losses are compared.
pub fn tail(steps: u64) -> usize {
    let steps = steps.saturating_mul(TAIL).div_ceil(100);
    usize::try_from(steps).unwrap_or(usize::MAX).max(1)
}

/// Step 5: the gap of the training losses at the end, `steps` being those of the whole run.
pub fn last_training_gap(run: &RunRecord, reference: &RunRecord, steps: u64) -> Option<f64> {
    let is_whole = |it: &RunRecord| it.step() == steps && it.first_other_batch().is_none();
    if !(is_whole(run) && is_whole(reference)) {
        return None;
    }
    let before = steps.saturating_sub(tail(steps) as u64);
    let pairs = pairs(run, reference);
    let begin = pairs.partition_point(|(step, ..)| *step <= before);
    gap_over(&pairs[begin..]).map(|(_, gap)| gap)
}

/// Steps 1 to 3: the gap of training losses by step.
pub fn training_gap(run: &RunRecord, reference: &RunRecord, window: usize) -> BTreeMap<u64, f64> {
    let pairs = pairs(run, reference);
    pairs.windows(window.max(1)).filter_map(gap_over).collect()
}

/// A step that both runs have: its number, how far the run's loss lies above the reference's, and
/// that.
type Pair = (u64, f64, f64);

/// The steps whose batches were the same.
fn pairs(run: &RunRecord, reference: &RunRecord) -> Vec<Pair> {
    let others = [run, reference].map(RunRecord::first_other_batch);
    let end = others.into_iter().flatten().min().unwrap_or(u64::MAX);
    let losses: BTreeMap<_, _> = reference
        .steps
        .iter()
        .map(|it| (it.step, it.loss))
        .collect();
    let paired = |point: &StepPoint| {
        let there = *losses.get(&point.step)?;
        (point.step < end).then_some((point.step, point.loss - there, there))
    };
    run.steps.iter().filter_map(paired).collect()
}

/// The last of some steps, and the gap over all of them.
fn gap_over(pairs: &[Pair]) -> Option<(u64, f64)> {
    let (step, ..) = pairs.last()?;
    let difference: f64 = pairs.iter().map(|(_, difference, _)| difference).sum();
    let loss: f64 = pairs.iter().map(|(.., loss)| loss).sum();
    Some((*step, 100.0 * difference / loss))
}

/// Step 4: the gap of validation losses by step.
pub fn validation_gap(run: &RunRecord, reference: &RunRecord) -> BTreeMap<u64, f64> {
    let gap = |(step, loss): (&u64, &Loss)| {
        let there = reference.validations.get(step)?.nats;
        Some((*step, percent(loss.nats, there)))
    };
    run.validations.iter().filter_map(gap).collect()
}

/// How far a loss lies above another one, in percent of that.
pub fn percent(loss: f64, reference: f64) -> f64 {
    100.0 * (loss - reference) / reference
}

/// The gaps of several seeds as one line with a range, where all of them have one.
pub fn over_seeds(seeds: &[BTreeMap<u64, f64>]) -> Vec<GapPoint> {
    let Some((first, others)) = seeds.split_first() else {
        return Vec::new();
    };
    let point = |(&step, &gap): (&u64, &f64)| {
        let others = others.iter().map(|seed| seed.get(&step).copied());
        let gaps: Vec<_> = std::iter::once(Some(gap))
            .chain(others)
            .collect::<Option<_>>()?;
        gaps.iter().all(|gap| gap.is_finite()).then(|| GapPoint {
            step,
            mean: gaps.iter().sum::<f64>() / gaps.len() as f64,
            low: gaps.iter().copied().fold(f64::INFINITY, f64::min),
            high: gaps.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        })
    };
    first.iter().filter_map(point).collect()
}

/// Means over consecutive points, at most `most` of them: what a picture can show.
pub fn thinned(points: &[GapPoint], most: usize) -> Vec<GapPoint> {
    let together = points.len().div_ceil(most.max(1)).max(1);
    let mean = |points: &[GapPoint], of: fn(&GapPoint) -> f64| {
        points.iter().map(of).sum::<f64>() / points.len() as f64
    };
    let chunk = |points: &[GapPoint]| GapPoint {
        step: points[points.len() / 2].step,
        mean: mean(points, |point| point.mean),
        low: mean(points, |point| point.low),
        high: mean(points, |point| point.high),
    };
    points.chunks(together).map(chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::log::{RewindLine, SkipReason, SkippedLine};

    fn record(losses: &[(u64, f64)]) -> RunRecord {
        let point = |&(step, loss): &(u64, f64)| StepPoint {
            step,
            loss,
            learning_rate: 1.0,
            grad_norm: 1.0,
            tokens: 1,
            tokens_per_second: 1.0,
        };
        RunRecord {
            steps: losses.iter().map(point).collect(),
            ..RunRecord::default()
        }
    }

    #[test]
    fn the_noise_of_the_batches_falls_out_of_paired_losses() {
        let reference = [4.0, 9.0, 2.0, 5.0, 8.0];
        let steps = |add: f64| {
            (1..)
                .zip(reference.map(|loss| loss + add))
                .collect::<Vec<_>>()
        };
        let gaps = training_gap(&record(&steps(0.1)), &record(&steps(0.0)), 2);
        // 0.2 over the sum of two losses of the reference.
        let expected = [
            (2, 20.0 / 13.0),
            (3, 20.0 / 11.0),
            (4, 20.0 / 7.0),
            (5, 20.0 / 13.0),
        ];
        assert_eq!(gaps.len(), expected.len());
        for (step, expected) in expected {
            assert!((gaps[&step] - expected).abs() < 1e-9, "{step}: {gaps:?}");
        }
    }

    #[test]
    fn steps_that_one_run_skipped_are_paired_in_neither() {
        let run = record(&[(1, 2.0), (3, 2.0)]);
        let reference = record(&[(1, 1.0), (2, 1.0), (3, 1.0)]);
        let gaps = training_gap(&run, &reference, 1);
        assert_eq!(gaps, BTreeMap::from([(1, 100.0), (3, 100.0)]));
    }

    #[test]
    fn nothing_is_paired_behind_a_return_to_a_checkpoint() {
        let mut run = record(&[(1, 2.0), (2, 2.0), (3, 2.0)]);
        run.rewinds.push(RewindLine {
            from: 3,
            to: 1,
            loss: 9.0,
            limit: 3.0,
            rewinds: 1,
        });
        let reference = record(&[(1, 1.0), (2, 1.0), (3, 1.0)]);
        let steps = |gaps: BTreeMap<u64, f64>| gaps.into_keys().collect::<Vec<_>>();
        assert_eq!(steps(training_gap(&run, &reference, 1)), [1]);
        assert_eq!(steps(training_gap(&reference, &run, 1)), [1]);
    }

    #[test]
    fn the_last_gap_is_that_of_the_last_steps_of_whole_runs() {
        assert_eq!((tail(1), tail(20), tail(3052)), (1, 3, 458));
        // The third last step is in, the fourth last is not.
        let losses = |at: u64, steps: u64| {
            let loss = |step| (step, if step == at { 5.0 } else { 2.0 });
            record(&(1..=steps).map(loss).collect::<Vec<_>>())
        };
        let gap = |run: &RunRecord| last_training_gap(run, &losses(0, 20), 20);
        assert_eq!(gap(&losses(18, 20)), Some(50.0));
        assert_eq!(gap(&losses(17, 20)), Some(0.0));
        assert_eq!(gap(&losses(18, 19)), None);
    }

    /// Pairs were counted back from the last one, which had to be the last step: a skipped step
    /// moved the window, and at the end of a run it took the gap of that seed away.
    #[test]
    fn a_skipped_step_costs_the_last_gap_that_step_alone() {
        let losses = |at: u64, skipped: u64| {
            let loss = |step| (step, if step == at { 5.0 } else { 2.0 });
            let steps = (1..=20).filter(|step| *step != skipped);
            let mut run = record(&steps.map(loss).collect::<Vec<_>>());
            if skipped > 0 {
                run.skipped.push(SkippedLine {
                    step: skipped,
                    reason: SkipReason::NonFinite,
                    loss: "NaN".to_owned(),
                    grad_norm: "NaN".to_owned(),
                    place: None,
                    in_a_row: 1,
                    skipped: 1,
                });
            }
            run
        };
        let gap = |run: &RunRecord, reference: &RunRecord| last_training_gap(run, reference, 20);
        for skipped in [19, 20] {
            // Two pairs are left of 18, 19 and 20.
            assert_eq!(gap(&losses(18, skipped), &losses(0, 0)), Some(75.0));
            assert_eq!(gap(&losses(18, 0), &losses(0, skipped)), Some(75.0));
            assert_eq!(gap(&losses(17, skipped), &losses(0, 0)), Some(0.0));
        }
        let mut rewound = losses(18, 0);
        rewound.rewinds.push(RewindLine {
            from: 20,
            to: 19,
            loss: 9.0,
            limit: 3.0,
            rewinds: 1,
        });
        assert_eq!(gap(&rewound, &losses(0, 0)), None);
    }

    #[test]
    fn seeds_are_averaged_where_all_of_them_are() {
        let seeds = [
            BTreeMap::from([(1, 1.0), (2, 3.0), (3, f64::NAN)]),
            BTreeMap::from([(2, 5.0), (3, 1.0)]),
        ];
        let point = GapPoint {
            step: 2,
            mean: 4.0,
            low: 3.0,
            high: 5.0,
        };
        assert_eq!(over_seeds(&seeds), [point]);
        assert_eq!(over_seeds(&[]), []);
    }

    #[test]
    fn a_thinned_line_keeps_its_mean() {
        let point = |step: u64| GapPoint {
            step,
            mean: step as f64,
            low: 0.0,
            high: 9.0,
        };
        let points: Vec<_> = (1..=9).map(point).collect();
        let thin = thinned(&points, 3);
        let means: Vec<_> = thin.iter().map(|point| point.mean).collect();
        assert_eq!(means, [2.0, 5.0, 8.0]);
        assert_eq!(thinned(&points, 100), points);
    }
}
