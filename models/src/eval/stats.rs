//! Means, standard errors, and the test of two paired results.
//!
//! 1. Of items: the mean, and `s / sqrt(n)` with the sample deviation `s` (n - 1).
//! 2. Of a group by size: the mean of all items; its error is that of the pooled variance,
//!    `sqrt(sum (n_i - 1) n_i e_i^2 / (N - k) / N)`.
//! 3. Of a group of equal parts: the mean of the parts' means, `sqrt(sum e_i^2) / k`.
//! 4. Of pairs: the mean difference with the error of 1., and McNemar's test on the pairs that
//!    disagree: the exact two-sided binomial, `2 P(X <= min(b, c))` for X of Bin(b + c, 1/2). A sum
//!    of logarithms is as quick as the chi-square that is usual for many pairs, and needs no limit
//!    from which to take that.
//!
//! Source: lm-evaluation-harness 0.4.13, `api/metrics.py` (1 to 3); McNemar 1947.

use serde::{Deserialize, Serialize};

use crate::json::number_or_nan;

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The mean, or a function of it; null in a file where it is no finite number.
    #[serde(deserialize_with = "number_or_nan")]
    pub value: f64,
    /// Its standard error; `None` where one number has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<f64>,
}

/// A figure of one part of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// The part's figure.
    pub figure: Figure,
    /// Its items.
    pub items: usize,
}

/// 1. The mean of some numbers.
pub fn mean(values: &[f64]) -> Figure {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Figure {
        value: mean,
        stderr: (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt()),
    }
}

/// 2. The mean of all items of the parts.
pub fn mean_by_size(parts: &[Part]) -> Figure {
    let n: f64 = parts.iter().map(|part| part.items as f64).sum();
    let sum: f64 = parts
        .iter()
        .map(|part| part.figure.value * part.items as f64)
        .sum();
    let squares: Option<f64> = parts
        .iter()
        .map(|part| {
            let (stderr, n) = (part.figure.stderr?, part.items as f64);
            Some((n - 1.0) * n * stderr.powi(2))
        })
        .sum();
    Figure {
        value: sum / n,
        stderr: squares.map(|squares| (squares / (n - parts.len() as f64) / n).sqrt()),
    }
}

/// 3. The mean of the parts' means.
pub fn mean_of_parts(parts: &[Part]) -> Figure {
    let k = parts.len() as f64;
    let squares: Option<f64> = parts
        .iter()
        .map(|part| part.figure.stderr.map(|stderr| stderr.powi(2)))
        .sum();
    Figure {
        value: parts.iter().map(|part| part.figure.value).sum::<f64>() / k,
        stderr: squares.map(|squares| squares.sqrt() / k),
    }
}

/// How two results of the same items differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Mean of the second less the first, with the error of the pairs.
    pub difference: Figure,
    /// Items that only the first has right.
    pub only_first: usize,
    /// Items that only the second has right.
    pub only_second: usize,
    /// How likely a difference at least as large is if neither is better.
    pub p_value: f64,
}

/// 4. Compares right and wrong, item by item.
pub fn paired(pairs: &[(bool, bool)]) -> Paired {
    let differences = pairs
        .iter()
        .map(|&(a, b)| f64::from(i8::from(b) - i8::from(a)));
    let count = |of: (bool, bool)| pairs.iter().filter(|&&pair| pair == of).count();
    let (only_first, only_second) = (count((true, false)), count((false, true)));
    Paired {
        difference: mean(&differences.collect::<Vec<_>>()),
        only_first,
        only_second,
        p_value: mcnemar(only_first, only_second),
    }
}

/// The exact two-sided p-value of McNemar's test.
pub fn mcnemar(only_first: usize, only_second: usize) -> f64 {
    let n = only_first + only_second;
    // ln of C(n, i) / 2^n, from one term to the next.
    let mut term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = term.exp();
    for i in 1..=only_first.min(only_second) {
        term += ((n - i + 1) as f64 / i as f64).ln();
        tail += term.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-12 * b.abs().max(1.0)
    }

    #[test]
    fn the_error_of_a_mean_divides_by_n_less_one() {
        // Deviations from 2: 1, 1, 1, 1; 4 / 3 / 4 = 1 / 3.
        let figure = mean(&[1.0, 3.0, 1.0, 3.0]);
        assert_eq!(figure.value, 2.0);
        assert!(close(figure.stderr.unwrap(), (1.0_f64 / 3.0).sqrt()));
        assert_eq!(mean(&[1.0]).stderr, None);
    }

    #[test]
    fn a_group_is_weighted_by_size_or_by_part() {
        let part = |value, stderr, items| Part {
            figure: Figure {
                value,
                stderr: Some(stderr),
            },
            items,
        };
        let parts = [part(0.5, 0.1, 10), part(0.2, 0.2, 30)];
        let by_size = mean_by_size(&parts);
        assert!(close(by_size.value, (5.0 + 6.0) / 40.0));
        // (9 * 10 * 0.01 + 29 * 30 * 0.04) / 38 / 40.
        assert!(close(
            by_size.stderr.unwrap(),
            (35.7_f64 / 38.0 / 40.0).sqrt()
        ));
        let of_parts = mean_of_parts(&parts);
        assert!(close(of_parts.value, 0.35));
        assert!(close(of_parts.stderr.unwrap(), 0.05_f64.sqrt() / 2.0));
    }

    #[test]
    fn mcnemar_is_the_binomial_at_any_count() {
        for (b, c, expected) in [
            (0, 0, 1.0),
            (5, 5, 1.0),
            (0, 5, 2.0 / 32.0),
            (5, 0, 2.0 / 32.0),
            // 2 (1 + 10 + 45) / 1024.
            (2, 8, 112.0 / 1024.0),
        ] {
            assert!(
                close(mcnemar(b, c), expected),
                "{b}, {c}: {}",
                mcnemar(b, c)
            );
        }
        // Far beyond what 2^-n can hold: the chi-square with continuity correction is
        // (150 - 1)^2 / 3850 = 5.7665, of which the tail is 0.01634.
        assert!((mcnemar(1850, 2000) - 0.01634).abs() < 2e-4);
        assert!(mcnemar(10_000, 12_000) < 1e-40);
    }

    #[test]
    fn pairs_differ_by_those_that_disagree() {
        let pairs = [(true, false), (false, true), (false, true), (true, true)];
        let paired = paired(&pairs);
        assert_eq!((paired.only_first, paired.only_second), (1, 2));
        assert!(close(paired.difference.value, 0.25));
        // -1, 1, 1, 0: squares of the deviations 25/16 + 9/16 + 9/16 + 1/16 = 44/16.
        assert!(close(
            paired.difference.stderr.unwrap(),
            (44.0_f64 / 16.0 / 12.0).sqrt()
        ));
        assert_eq!(paired.p_value, 1.0);
    }
}
