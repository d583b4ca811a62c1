//! Which source each sequence of a run comes from: weights, phase by phase, as a function of the
//! sequence's place.
//!
//! 1. The weights of a phase are whole numbers `w_i` with sum `D` ([`Weight`]), so `D` sequences
//!    hold exactly `w_i` of source `i`, and the order of sources repeats with period `D`.
//! 2. Within the period, sequence `t` goes to the source with the earliest deadline
//!    `ceil((c_i + 1) * D / w_i)` among those that may have one more, `c_i * D < (t + 1) * w_i`,
//!    where `c_i` counts those before. After any number `t` of sequences `|c_i - t * w_i / D| < 1`:
//!    this is proportionate fair scheduling on one processor (Baruah et al. 1996).
//! 3. A table over one period gives the source of a sequence and how many of that source came
//!    before it; whole periods and earlier phases are added in closed form.
//!
//! So the place of a sequence in its source is a function of the place in the run alone. Sources go
//! on through phases: what a later phase takes from one is what comes next there.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Decimals of a weight that count.
const DECIMALS: f64 = 1e4;
/// Largest period: a table over it is held in memory.
const MAX_PERIOD: u64 = 1 << 20;
/// Largest weight.
const MAX_WEIGHT: f64 = 1e6;

/// What is wrong with a blend.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BlendError {
    /// A weight that is none.
    #[error(
        "weight {weight} of {source_name}: 0 to 1000000 with at most four decimals is possible"
    )]
    Weight {
        /// Name of the source.
        source_name: String,
        /// Its weight.
        weight: f64,
    },
    /// Nothing to take.
    #[error("every weight is 0, one source at least needs a positive one")]
    Nothing,
    /// A period that is too long.
    #[error(
        "the weights repeat after {period} sequences, {MAX_PERIOD} at most are possible: fewer \
         decimals make it shorter"
    )]
    Period {
        /// Sum of the weights as whole numbers without a common divisor.
        period: u64,
    },
}

/// How much of a source, relative to the others of its phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weight {
    /// Name of the source.
    pub source: String,
    /// Its weight.
    pub weight: f64,
}

/// The order of sources within a phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blend {
    /// Sequences of each source in a period.
    weights: Vec<u64>,
    /// For each place of the period: its source, and how many of that source came before.
    places: Vec<(u32, u32)>,
}

impl Blend {
    /// The order that these weights give, source by source.
    ///
    /// # Errors
    /// [`BlendError`].
    pub fn new(weights: &[Weight]) -> Result<Self, BlendError> {
        let weights = whole(weights)?;
        let period: u64 = weights.iter().sum();
        // Every product below is under 2^60: two factors of at most the period, and a period.
        let mut counts = vec![0u64; weights.len()];
        let mut places = Vec::new();
        for place in 0..period {
            let may = |&source: &usize| counts[source] * period < (place + 1) * weights[source];
            let deadline =
                |&source: &usize| ((counts[source] + 1) * period).div_ceil(weights[source]);
            let next = (0..weights.len()).filter(may).min_by_key(deadline);
            // Some source may always have one more: the counts add up to `place`.
            let next = next.ok_or(BlendError::Nothing)?;
            let before = u32::try_from(counts[next]).unwrap_or(u32::MAX);
            places.push((u32::try_from(next).unwrap_or(u32::MAX), before));
            counts[next] += 1;
        }
        Ok(Self { weights, places })
    }

    /// The one source that there is.
    pub fn single() -> Self {
        Self {
            weights: vec![1],
            places: vec![(0, 0)],
        }
    }

    /// Sequences after which the order repeats.
    pub fn period(&self) -> u64 {
        self.places.len() as u64
    }

    /// The source of a sequence of the phase, and how many of that source came before in it.
    fn place(&self, sequence: u64) -> (usize, u64) {
        let (periods, place) = (sequence / self.period(), sequence % self.period());
        let (source, before) = self.places[usize::try_from(place).unwrap_or(0)];
        let source = source as usize;
        let earlier = periods.wrapping_mul(self.weights[source]);
        (source, earlier.wrapping_add(u64::from(before)))
    }

    /// How many of a source are among the first `sequences` of the phase.
    fn count(&self, source: usize, sequences: u64) -> u64 {
        let (periods, rest) = (sequences / self.period(), sequences % self.period());
        let rest = usize::try_from(rest).unwrap_or(0);
        let of_it = |&&(of, _): &&(u32, u32)| of as usize == source;
        let rest = self.places[..rest].iter().filter(of_it).count() as u64;
        periods
            .wrapping_mul(self.weights[source])
            .wrapping_add(rest)
    }
}

/// Weights as whole numbers without a common divisor.
fn whole(weights: &[Weight]) -> Result<Vec<u64>, BlendError> {
    let mut parts = Vec::with_capacity(weights.len());
    for Weight { source, weight } in weights {
        let scaled = weight * DECIMALS;
        let rounded = scaled.round();
        // A decimal like 0.1 is not exact in binary; its neighbours at four decimals are far off.
        let exact = (scaled - rounded).abs() < 1e-6 * rounded.max(1.0);
        if !exact || !(0.0..=MAX_WEIGHT).contains(weight) {
            return Err(BlendError::Weight {
                source_name: source.clone(),
                weight: *weight,
            });
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number from 0 to 1e10"
        )]
        parts.push(rounded as u64);
    }
    let divisor = parts.iter().copied().fold(0, greatest_common_divisor);
    if divisor == 0 {
        return Err(BlendError::Nothing);
    }
    for part in &mut parts {
        *part /= divisor;
    }
    let period = parts
        .iter()
        .fold(0, |sum: u64, part| sum.saturating_add(*part));
    if period > MAX_PERIOD {
        return Err(BlendError::Period { period });
    }
    Ok(parts)
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

/// The blend of a run: phases, each over a range of sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Curriculum {
    phases: Vec<Phase>,
}

/// A phase within a run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Phase {
    /// First sequence.
    first: u64,
    blend: Blend,
    /// Sequences of each source in earlier phases.
    before: Vec<u64>,
}

impl Curriculum {
    /// Blends of `sources` sources, one at least, with the sequence at which each ends; the last
    /// one goes on.
    pub fn new(sources: usize, phases: impl IntoIterator<Item = (Blend, u64)>) -> Self {
        let (mut first, mut before) = (0, vec![0u64; sources]);
        let mut list = Vec::new();
        for (blend, end) in phases {
            let length = end.saturating_sub(first);
            let phase = Phase {
                first,
                before: before.clone(),
                blend,
            };
            for (source, count) in before.iter_mut().enumerate() {
                *count = count.wrapping_add(phase.blend.count(source, length));
            }
            list.push(phase);
            first = first.max(end);
        }
        Self { phases: list }
    }

    /// One source, all along.
    pub fn single() -> Self {
        Self::new(1, [(Blend::single(), u64::MAX)])
    }

    /// The source of a sequence of the run, and how many of that source came before.
    pub fn place(&self, sequence: u64) -> (usize, u64) {
        let phase = self.phase(sequence);
        let (source, before) = phase.blend.place(sequence - phase.first);
        (source, before.wrapping_add(phase.before[source]))
    }

    /// How many of a source are among the first `sequences`.
    pub fn count(&self, source: usize, sequences: u64) -> u64 {
        let phase = self.phase(sequences);
        let within = phase.blend.count(source, sequences - phase.first);
        within.wrapping_add(phase.before[source])
    }

    /// How many of each source are in a range of the run.
    pub fn counts(&self, sequences: Range<u64>) -> Vec<u64> {
        let sources = self.phases.first().map_or(0, |phase| phase.before.len());
        let count = |source| {
            let end = self.count(source, sequences.end);
            end.wrapping_sub(self.count(source, sequences.start))
        };
        (0..sources).map(count).collect()
    }

    /// The phase that a sequence lies in: the last one that begins at or before it.
    fn phase(&self, sequence: u64) -> &Phase {
        let index = self.phases.partition_point(|phase| phase.first <= sequence);
        // The first phase begins at 0.
        &self.phases[index.saturating_sub(1)]
    }
}

#[cfg(test)]
mod tests {
    use super::super::order::mix;
    use super::*;

    fn weights(weights: &[f64]) -> Vec<Weight> {
        let named = |(index, &weight): (usize, &f64)| Weight {
            source: format!("source {index}"),
            weight,
        };
        weights.iter().enumerate().map(named).collect()
    }

    fn blend(of: &[f64]) -> Blend {
        Blend::new(&weights(of)).unwrap()
    }

    #[test]
    fn weights_lose_their_common_divisor_and_decimals_count_as_they_are_written() {
        assert_eq!(blend(&[70.0, 20.0, 10.0]).weights, [7, 2, 1]);
        assert_eq!(blend(&[0.7, 0.2, 0.1]).weights, [7, 2, 1]);
        assert_eq!(blend(&[0.3333, 0.6667]).period(), 10_000);
        assert_eq!(blend(&[0.0, 5.0]).weights, [0, 1]);
        assert_eq!(blend(&[1.0]), Blend::single());
        let error = |of: &[f64]| Blend::new(&weights(of)).unwrap_err().to_string();
        assert!(error(&[0.0, 0.0]).starts_with("every weight is 0"));
        assert!(error(&[]).starts_with("every weight is 0"));
        for wrong in [-1.0, f64::NAN, f64::INFINITY, 0.12345, 2e6] {
            let text = error(&[1.0, wrong]);
            assert!(text.starts_with("weight"), "{text}");
            assert!(text.contains("source 1"), "{text}");
        }
        let text = error(&[999_999.0, 1_000_000.0]);
        assert!(text.contains("repeat after 1999999"), "{text}");
    }

    #[test]
    fn the_blend_holds_to_one_sequence_after_any_number() {
        for case in 0..300u64 {
            let sources = 1 + mix(case) % 7;
            let most = if case % 2 == 0 { 3 } else { 60 };
            let part = |source| mix(case << 8 | source) % most;
            let parts: Vec<u64> = (0..sources).map(part).collect();
            if parts.iter().all(|&part| part == 0) {
                continue;
            }
            let blend = blend(&parts.iter().map(|&part| part as f64).collect::<Vec<_>>());
            let total = blend.period();
            let mut counts = vec![0; parts.len()];
            for sequence in 0..total * 3 {
                // |count - sequence * weight / total| < 1, in whole numbers.
                for (&count, &weight) in counts.iter().zip(&blend.weights) {
                    let off = (count * total).abs_diff(sequence * weight);
                    assert!(off < total, "{parts:?}: {counts:?} after {sequence}");
                }
                let (source, before) = blend.place(sequence);
                assert_eq!(before, counts[source], "{parts:?}: sequence {sequence}");
                counts[source] += 1;
            }
            let tripled: Vec<_> = blend.weights.iter().map(|weight| weight * 3).collect();
            assert_eq!(counts, tripled);
        }
    }

    #[test]
    fn phases_change_at_their_sequence_and_sources_go_on_where_they_were() {
        let run = Curriculum::new(
            3,
            [
                (blend(&[3.0, 1.0, 0.0]), 1001),
                (blend(&[1.0, 1.0, 2.0]), 1500),
                (blend(&[0.0, 0.0, 1.0]), 2000),
            ],
        );
        let mut counts = [0; 3];
        for sequence in 0..3000 {
            assert_eq!(run.counts(0..sequence), counts, "before {sequence}");
            let (source, before) = run.place(sequence);
            assert_eq!(before, counts[source], "sequence {sequence}");
            counts[source] += 1;
            assert!(source != 2 || sequence >= 1001, "sequence {sequence}");
            assert!(source == 2 || sequence < 1500, "sequence {sequence}");
        }
        // 1001 of 3 to 1, 499 of 1 to 1 to 2, all of the rest.
        assert!(counts[0].abs_diff(751 + 125) <= 2, "{counts:?}");
        assert!(counts[1].abs_diff(250 + 125) <= 2, "{counts:?}");
        // The last phase goes on behind its end.
        assert_eq!(counts.iter().sum::<u64>(), 3000);
        assert_eq!(run.place(u64::MAX).0, 2);
    }
}
