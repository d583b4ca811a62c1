//! Text from a model: one forward of the last tokens per new token, without a cache.
//!
//! Greedy, or drawn from the softmax at a temperature among the `top_k` most likely tokens. Draw
//! `i` is a function of the seed and `i`.

use std::cmp::Ordering;
use std::num::NonZeroUsize;

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::hybrid::HybridLm;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Only this many of the most likely tokens are drawn from; `None`: all.
    pub top_k: Option<NonZeroUsize>,
    /// Names the draws.
    pub seed: u64,
}

/// Continues `prompt` by `count` ids; the model sees the last `context` ids.
///
/// An empty prompt starts from id 0.
pub fn generate<B: Backend>(
    model: &HybridLm<B>,
    prompt: &[u32],
    count: usize,
    context: NonZeroUsize,
    sampling: Sampling,
    device: &B::Device,
) -> Vec<u32> {
    let mut ids = if prompt.is_empty() {
        vec![0]
    } else {
        prompt.to_vec()
    };
    let given = ids.len();
    for draw in 0..count {
        let window = &ids[ids.len().saturating_sub(context.get())..];
        let length = window.len();
        let window: Vec<i64> = window.iter().map(|&id| i64::from(id)).collect();
        let window = Tensor::<B, 2, Int>::from_data(TensorData::new(window, [1, length]), device);
        let [_, _, vocab] = {
            let logits = model.forward(window);
            let dims = logits.dims();
            let last = logits.slice([0..1, length - 1..length, 0..dims[2]]);
            let logits: Vec<f32> = last.into_data().iter::<f32>().collect();
            ids.push(choose(&logits, sampling, draw as u64));
            dims
        };
        debug_assert!(ids.last().is_none_or(|&id| (id as usize) < vocab));
    }
    ids.split_off(given)
}

/// The id for one draw. NaN counts as the least likely.
fn choose(logits: &[f32], sampling: Sampling, draw: u64) -> u32 {
    let mut ranked: Vec<(u32, f32)> = (0u32..).zip(logits.iter().copied()).collect();
    let value = |logit: f32| {
        if logit.is_nan() {
            f32::NEG_INFINITY
        } else {
            logit
        }
    };
    // Ties go to the smaller id.
    ranked.sort_by(|a, b| {
        value(b.1)
            .partial_cmp(&value(a.1))
            .unwrap_or(Ordering::Equal)
            .then(a.0.cmp(&b.0))
    });
    let Some(&(best, top)) = ranked.first() else {
        return 0;
    };
    if sampling.temperature <= 0.0 || !top.is_finite() {
        return best;
    }
    ranked.truncate(sampling.top_k.map_or(usize::MAX, NonZeroUsize::get));
    let weight = |logit: f32| (f64::from(value(logit) - top) / sampling.temperature).exp();
    let total: f64 = ranked.iter().map(|&(_, logit)| weight(logit)).sum();
    let mut left = uniform(sampling.seed, draw) * total;
    for &(id, logit) in &ranked {
        left -= weight(logit);
        if left < 0.0 {
            return id;
        }
    }
    best
}

/// A number in [0, 1) from a seed and a counter (SplitMix64).
fn uniform(seed: u64, counter: u64) -> f64 {
    let mut z = seed.wrapping_add(counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: None,
        seed: 0,
    };

    #[test]
    fn greedy_takes_the_largest_logit_and_the_first_of_equals() {
        assert_eq!(choose(&[0.0, 2.0, 2.0, f32::NAN], GREEDY, 0), 1);
        assert_eq!(choose(&[f32::NAN, f32::NAN], GREEDY, 0), 0);
    }

    #[test]
    fn draws_follow_the_softmax_and_stay_within_the_top() {
        let logits = [0.0, 1.0, 2.0, -1.0];
        let sampling = Sampling {
            temperature: 1.0,
            top_k: NonZeroUsize::new(2),
            seed: 3,
        };
        let n = 20_000;
        let mut counts = [0usize; 4];
        for draw in 0..n {
            counts[choose(&logits, sampling, draw) as usize] += 1;
        }
        assert_eq!((counts[0], counts[3]), (0, 0));
        // p = 1 / (1 + e^-1); five standard deviations of a binomial share.
        let p = 1.0 / (1.0 + (-1.0f64).exp());
        let share = counts[2] as f64 / n as f64;
        assert!(
            (share - p).abs() < 5.0 * (p * (1.0 - p) / n as f64).sqrt(),
            "{share}"
        );
    }

    #[test]
    fn equal_seeds_draw_alike() {
        let sampling = Sampling {
            temperature: 1.0,
            top_k: None,
            seed: 9,
        };
        let draws = |seed| {
            let sampling = Sampling { seed, ..sampling };
            (0..50)
                .map(|draw| choose(&[0.0; 16], sampling, draw))
                .collect::<Vec<_>>()
        };
        assert_eq!(draws(9), draws(9));
        assert_ne!(draws(9), draws(10));
    }
}
