//! How one token is chosen from its logits.
//!
//! 1. Temperature 0 takes the largest logit; the first of equals.
//! 2. Otherwise logits are divided by the temperature, and `top_k` keeps the most likely tokens.
//! 3. `top_p` keeps the fewest of those, most likely first, that hold this share of their
//!    probability; at least one.
//! 4. One of what is left is drawn by its probability. Draw `i` of row `r` is a function of the
//!    seed, `r` and `i`, so there is no generator state to keep.
//!
//! The order is that of transformers. NaN counts as the least likely logit.

use std::cmp::Ordering;
use std::num::NonZeroUsize;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only this many of the most likely tokens are drawn from; `None`: all.
    pub top_k: Option<NonZeroUsize>,
    /// Only the most likely tokens that together hold this share of the probability are drawn
    /// from, in (0, 1]; `None`: all.
    pub top_p: Option<f64>,
    /// Names the draws.
    pub seed: u64,
}

/// A setting that chooses nothing.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// Negative, infinite or NaN.
    #[error("the temperature is {0}, must be finite and at least 0; 0 takes the likeliest token")]
    Temperature(f64),
    /// No share of a whole.
    #[error("top-p is {0}, must be greater than 0 and at most 1")]
    TopP(f64),
}

/// Which draw of a generation one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Row of the batch.
    pub row: usize,
    /// Position among the generated tokens.
    pub index: u64,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: None,
        top_p: None,
        seed: 0,
    };

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SamplingError`], the first violation.
    pub fn validate(&self) -> Result<(), SamplingError> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(SamplingError::Temperature(self.temperature));
        }
        match self.top_p {
            Some(share) if !(share > 0.0 && share <= 1.0) => Err(SamplingError::TopP(share)),
            Some(_) | None => Ok(()),
        }
    }

    /// The token for one draw; 0 if there are no logits.
    pub fn choose(&self, logits: &[f32], draw: Draw) -> u32 {
        let ranked = (0u32..).zip(logits.iter().copied());
        let Some((best, top)) = ranked.clone().min_by(by_likelihood) else {
            return 0;
        };
        if self.temperature <= 0.0 || !top.is_finite() {
            return best;
        }
        let kept = self.kept(ranked.collect(), top);
        let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
        let mut left = uniform(self.seed, draw) * total;
        for &(id, weight) in &kept {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        best
    }

    /// Steps 2 and 3: the tokens that may be drawn, most likely first, each with its probability
    /// relative to the first one's. `top` is the largest logit.
    fn kept(&self, mut ranked: Vec<(u32, f32)>, top: f32) -> Vec<(u32, f64)> {
        let k = self.top_k.map_or(ranked.len(), NonZeroUsize::get);
        if k < ranked.len() {
            // A vocabulary has 10^5 ids; only the ones that are kept need an order.
            ranked.select_nth_unstable_by(k - 1, by_likelihood);
            ranked.truncate(k);
        }
        ranked.sort_unstable_by(by_likelihood);
        let weight = |logit: f32| (f64::from(value(logit) - top) / self.temperature).exp();
        let mut kept: Vec<(u32, f64)> = ranked
            .into_iter()
            .map(|(id, logit)| (id, weight(logit)))
            .collect();
        if let Some(share) = self.top_p {
            let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
            let mut held = 0.0;
            let enough = kept.iter().position(|&(_, weight)| {
                held += weight;
                held >= share * total
            });
            // At a share of 1 the sum may end one rounding short of the total.
            kept.truncate(enough.map_or(kept.len(), |last| last + 1));
        }
        kept
    }
}

/// The more likely token first; the smaller id of equals.
fn by_likelihood(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    value(b.1)
        .partial_cmp(&value(a.1))
        .unwrap_or(Ordering::Equal)
        .then(a.0.cmp(&b.0))
}

fn value(logit: f32) -> f32 {
    if logit.is_nan() {
        f32::NEG_INFINITY
    } else {
        logit
    }
}

/// A number in [0, 1) from a seed and a draw (SplitMix64, once per row and once per draw).
fn uniform(seed: u64, draw: Draw) -> f64 {
    let row_seed = match draw.row {
        0 => seed,
        row => split_mix(seed, row as u64),
    };
    (split_mix(row_seed, draw.index) >> 11) as f64 / (1u64 << 53) as f64
}

/// Output `counter` of the SplitMix64 generator with this seed.
fn split_mix(seed: u64, counter: u64) -> u64 {
    let mut z = seed.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARM: Sampling = Sampling {
        temperature: 1.0,
        seed: 3,
        ..Sampling::GREEDY
    };

    fn draw(index: u64) -> Draw {
        Draw { row: 0, index }
    }

    fn top_k(k: usize) -> Sampling {
        Sampling {
            top_k: NonZeroUsize::new(k),
            ..WARM
        }
    }

    fn top_p(share: f64) -> Sampling {
        Sampling {
            top_p: Some(share),
            ..WARM
        }
    }

    /// Logits of these probabilities.
    fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    /// Checks that tokens are drawn with these probabilities, those of probability 0 never.
    fn check_shares(sampling: Sampling, logits: &[f32], expected: &[f64]) {
        let n = 20_000;
        let mut counts = vec![0usize; logits.len()];
        for index in 0..n {
            counts[sampling.choose(logits, draw(index)) as usize] += 1;
        }
        for (id, (&count, &p)) in counts.iter().zip(expected).enumerate() {
            // Five standard deviations of a binomial share.
            let limit = 5.0 * (p * (1.0 - p) / n as f64).sqrt();
            let share = count as f64 / n as f64;
            assert!(
                (share - p).abs() <= limit,
                "{sampling:?}: {id} has {share}, not {p}"
            );
        }
    }

    #[test]
    fn greedy_takes_the_largest_logit_and_the_first_of_equals() {
        let greedy = |logits: &[f32]| Sampling::GREEDY.choose(logits, draw(0));
        assert_eq!(greedy(&[0.0, 2.0, 2.0, f32::NAN]), 1);
        assert_eq!(greedy(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(greedy(&[f32::NEG_INFINITY, -1e30]), 1);
        assert_eq!(greedy(&[]), 0);
        assert_eq!(WARM.choose(&[0.0, f32::INFINITY, 0.0], draw(0)), 1);
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let logits = [0.0f32, 1.0, 2.0, -1.0, f32::NAN];
        for temperature in [0.5, 1.0, 2.0] {
            let exp = logits.map(|logit| match logit {
                logit if logit.is_nan() => 0.0,
                logit => (f64::from(logit) / temperature).exp(),
            });
            let total: f64 = exp.iter().sum();
            let sampling = Sampling {
                temperature,
                ..WARM
            };
            check_shares(sampling, &logits, &exp.map(|e| e / total));
        }
    }

    #[test]
    fn top_k_keeps_the_k_most_likely_and_the_first_of_equals() {
        let logits = logits(&[0.1, 0.4, 0.2, 0.1, 0.2]);
        check_shares(top_k(1), &logits, &[0.0, 1.0, 0.0, 0.0, 0.0]);
        check_shares(top_k(2), &logits, &[0.0, 2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]);
        check_shares(
            top_k(4),
            &logits,
            &[1.0 / 9.0, 4.0 / 9.0, 2.0 / 9.0, 0.0, 2.0 / 9.0],
        );
        check_shares(top_k(9), &logits, &[0.1, 0.4, 0.2, 0.1, 0.2]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_hold_the_share() {
        // Sums of these shares are exact in binary, so that the boundary is met and not missed.
        let logits = logits(&[0.125, 0.5, 0.125, 0.25]);
        check_shares(top_p(1e-9), &logits, &[0.0, 1.0, 0.0, 0.0]);
        check_shares(top_p(0.5 - 1e-6), &logits, &[0.0, 1.0, 0.0, 0.0]);
        check_shares(
            top_p(0.5 + 1e-6),
            &logits,
            &[0.0, 2.0 / 3.0, 0.0, 1.0 / 3.0],
        );
        check_shares(
            top_p(0.75 + 1e-6),
            &logits,
            &[1.0 / 7.0, 4.0 / 7.0, 0.0, 2.0 / 7.0],
        );
        check_shares(top_p(1.0), &logits, &[0.125, 0.5, 0.125, 0.25]);
    }

    #[test]
    fn top_p_is_a_share_of_what_top_k_left() {
        let logits = logits(&[0.4, 0.3, 0.2, 0.1]);
        let sampling = Sampling {
            top_p: Some(0.6),
            ..top_k(2)
        };
        // 0.4 is 4/7 of the two, less than 0.6; of all four it and 0.3 would be needed too.
        check_shares(sampling, &logits, &[4.0 / 7.0, 3.0 / 7.0, 0.0, 0.0]);
        let sampling = Sampling {
            top_p: Some(0.57),
            ..top_k(2)
        };
        check_shares(sampling, &logits, &[1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn equal_seeds_draw_alike_and_rows_draw_apart() {
        let draws = |seed, row| {
            let sampling = Sampling { seed, ..WARM };
            (0..50)
                .map(|index| sampling.choose(&[0.0; 16], Draw { row, index }))
                .collect::<Vec<_>>()
        };
        assert_eq!(draws(9, 0), draws(9, 0));
        assert_ne!(draws(9, 0), draws(10, 0));
        assert_ne!(draws(9, 0), draws(9, 1));
        assert_ne!(draws(9, 1), draws(9, 2));
    }

    #[test]
    fn settings_that_choose_nothing_are_refused() {
        for temperature in [-0.1, f64::NAN, f64::INFINITY] {
            let sampling = Sampling {
                temperature,
                ..WARM
            };
            let error = sampling.validate().unwrap_err();
            assert!(matches!(error, SamplingError::Temperature(_)), "{error}");
        }
        for share in [0.0, -1.0, 1.1, f64::NAN] {
            let error = top_p(share).validate().unwrap_err();
            assert!(matches!(error, SamplingError::TopP(_)), "{error}");
        }
        for sampling in [Sampling::GREEDY, WARM, top_p(1.0), top_k(1)] {
            assert_eq!(sampling.validate(), Ok(()));
        }
    }
}
