//! CPython's `random.Random(seed).sample(range(n), k)`, whose choice of examples the harness has.
//!
//! 1. The Mersenne Twister MT19937, seeded by array with the one 32-bit word of the seed.
//! 2. A number below `n`: the highest `bit_length(n)` bits of a word, drawn anew while too large.
//! 3. `k` of few: each draw takes one from a pool, whose last element fills the gap; `k` of many:
//!    positions that were drawn before are drawn anew. CPython takes the pool while it is smaller
//!    than the set would be.
//!
//! Source: CPython 3.12, `Lib/random.py` and `Modules/_randommodule.c` (`getrandbits`), whose
//! results the tests hold.

use std::collections::HashSet;

use rand_mt::Mt;

/// A generator with CPython's state.
#[derive(Clone, Debug)]
pub struct PythonRandom {
    twister: Mt,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    pub fn new(seed: u32) -> Self {
        Self {
            twister: Mt::new_with_key([seed]),
        }
    }

    /// `sample(range(n), k)`; all of `0..n`, shuffled, if `k` is larger than `n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let k = k.min(n);
        if n <= size_of_set(k) {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..k)
                .map(|_| {
                    let at = self.below(pool.len());
                    pool.swap_remove(at)
                })
                .collect();
        }
        let mut seen = HashSet::new();
        let mut chosen = Vec::with_capacity(k);
        while chosen.len() < k {
            let at = self.below(n);
            if seen.insert(at) {
                chosen.push(at);
            }
        }
        chosen
    }

    /// A number in `0..n`; `n` is from 1 to 2^32 - 1.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.twister.next_u32() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }
}

/// How large CPython takes a set of `k` to be: 21, and a power of 4 from 3k on beyond 5.
fn size_of_set(k: usize) -> usize {
    if k <= 5 {
        return 21;
    }
    let mut power = 1;
    while power < 3 * k {
        power *= 4;
    }
    21 + power
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with CPython: `r = random.Random(1234); r.sample(range(n), k)`, one after the other.
    #[test]
    fn draws_are_those_of_cpython() {
        let mut random = PythonRandom::new(1234);
        for (n, k, expected) in [
            (7473, 5, vec![6374, 3610, 957, 61, 742]),
            (7473, 5, vec![7462, 6610, 4769, 286, 5501]),
            (21, 5, vec![2, 3, 11, 7, 0]),
            (22, 3, vec![0, 11, 20]),
            (
                2251,
                25,
                vec![
                    1983, 1898, 608, 373, 749, 468, 59, 2060, 1993, 1023, 264, 2216, 1908, 280,
                    364, 2109, 188, 1104, 258, 1238, 1970, 1455, 1091, 1020, 819,
                ],
            ),
            (100, 6, vec![58, 67, 85, 2, 65, 9]),
            (70, 6, vec![0, 42, 18, 60, 48, 21]),
            (6, 6, vec![0, 5, 3, 4, 2, 1]),
            (1, 1, vec![0]),
        ] {
            assert_eq!(random.sample(n, k), expected, "{k} of {n}");
        }
    }
}
