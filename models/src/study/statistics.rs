//! Means over seeds, and what their noise can resolve.
//!
//! Of `n` numbers: the mean, the sample deviation `s` (n - 1), the standard error `s / sqrt(n)`,
//! and the half width of the 95 % interval of the mean, `t s / sqrt(n)` with Student's t for n - 1
//! degrees of freedom: 12.7 for two seeds, 4.3 for three. Where the numbers are gaps between runs
//! of the same seed, a mean gap below that half width cannot be told from none.
//!
//! Arms of one study have about one deviation, which all of them together tell far better than
//! three seeds of one: [`Pooled`] has its degrees of freedom. What it resolves is a difference of
//! two arms, whose deviation is at most `sqrt(2)` times that of a gap: both gaps have the
//! reference's noise in them, which falls out.

use serde::{Deserialize, Serialize};

/// Student's t, two-sided 95 %, for 1 to 30 degrees of freedom.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];

/// The mean of one number per seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The mean.
    pub mean: f64,
    /// Seeds.
    pub seeds: usize,
    /// What the seeds say of each other; absent for a single one, which has no spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
}

/// How far numbers lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Sample standard deviation.
    pub deviation: f64,
    /// Standard error of the mean.
    pub standard_error: f64,
    /// Half width of the 95 % interval of the mean: what the noise resolves.
    pub resolution: f64,
}

impl Summary {
    /// Summarises one number per seed; `None` without any.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let spread = (values.len() > 1).then(|| {
            let deviation = (squares / (n - 1.0)).sqrt();
            let standard_error = deviation / n.sqrt();
            Spread {
                deviation,
                standard_error,
                resolution: t(values.len() - 1) * standard_error,
            }
        });
        Some(Self {
            mean,
            seeds: values.len(),
            spread,
        })
    }
}

/// The deviation that several groups of numbers have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pooled {
    /// Root of the squares about each group's own mean over the degrees of freedom.
    pub deviation: f64,
    /// Groups with a spread.
    pub groups: usize,
    /// Numbers less groups.
    pub freedom: usize,
}

impl Pooled {
    /// Pools the groups that have a spread, and a finite one: a number that is none would be all
    /// that is left of the others. `None` if there are fewer than two.
    pub fn of(groups: impl Iterator<Item = Summary>) -> Option<Self> {
        let spreads = groups.filter_map(|group| Some((group.seeds - 1, group.spread?.deviation)));
        let spreads: Vec<_> = spreads
            .filter(|(_, deviation)| deviation.is_finite())
            .collect();
        let freedom: usize = spreads.iter().map(|(freedom, _)| freedom).sum();
        let squares = spreads.iter().map(|(n, s)| *n as f64 * s * s).sum::<f64>();
        (spreads.len() > 1).then(|| Self {
            deviation: (squares / freedom as f64).sqrt(),
            groups: spreads.len(),
            freedom,
        })
    }

    /// Half width of the 95 % interval of the difference of two groups' means, of `seeds` numbers
    /// each.
    pub fn resolves(&self, seeds: usize) -> f64 {
        t(self.freedom) * self.deviation * (2.0 / seeds as f64).sqrt()
    }
}

/// Student's t; beyond the table the value at its end, which is wider than it has to be.
fn t(freedom: usize) -> f64 {
    T[(freedom - 1).min(T.len() - 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_seeds_give_the_textbook_interval() {
        // Mean 2, s = 1, s / sqrt(3) = 0.57735, t(2) = 4.303.
        let summary = Summary::of(&[1.0, 2.0, 3.0]).unwrap();
        let spread = summary.spread.unwrap();
        assert_eq!(
            (summary.mean, summary.seeds, spread.deviation),
            (2.0, 3, 1.0)
        );
        assert!((spread.standard_error - 0.577_350).abs() < 1e-6);
        assert!((spread.resolution - 2.484_34).abs() < 1e-4);
    }

    #[test]
    fn groups_with_other_means_and_sizes_pool_their_squares() {
        let of = |values: &[f64]| Summary::of(values).unwrap();
        let groups = [of(&[1.0, 3.0]), of(&[9.0]), of(&[10.0, 11.0, 12.0])];
        // Squares 2 and 2 over 1 + 2 degrees of freedom.
        let pooled = Pooled::of(groups.into_iter()).unwrap();
        assert_eq!((pooled.groups, pooled.freedom), (2, 3));
        assert!((pooled.deviation - (4.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        // t(3) = 3.182.
        let expected = 3.182 * pooled.deviation * (2.0_f64 / 3.0).sqrt();
        assert!((pooled.resolves(3) - expected).abs() < 1e-12);
        assert_eq!(Pooled::of(groups[..2].iter().copied()), None);
    }

    #[test]
    fn a_group_with_a_number_that_is_none_is_not_pooled() {
        let of = |values: &[f64]| Summary::of(values).unwrap();
        let groups = [of(&[1.0, 3.0]), of(&[4.0, 6.0]), of(&[5.0, f64::NAN])];
        let more = [of(&[f64::INFINITY, 5.0])];
        let pooled = Pooled::of(groups.into_iter().chain(more)).unwrap();
        assert_eq!((pooled.groups, pooled.freedom), (2, 2));
        assert!((pooled.deviation - 2.0_f64.sqrt()).abs() < 1e-12);
        assert_eq!(Pooled::of(groups[1..].iter().copied()), None);
    }

    #[test]
    fn one_seed_has_no_spread_and_none_no_mean() {
        let summary = Summary::of(&[1.5]).unwrap();
        assert_eq!((summary.mean, summary.spread), (1.5, None));
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn the_interval_narrows_with_seeds_and_never_below_the_tables_end() {
        let resolution = |n: usize| {
            let values: Vec<_> = (0..n).map(|i| (i % 2) as f64).collect();
            Summary::of(&values).unwrap().spread.unwrap()
        };
        assert!(resolution(4).resolution > resolution(8).resolution);
        let many = resolution(100);
        assert!((many.resolution / many.standard_error - 2.042).abs() < 1e-12);
    }
}
