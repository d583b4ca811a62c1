//! The order in which the windows of a source are visited: a keyed permutation for each epoch.
//!
//! A four-round Feistel network on the next power of four, walked until it lands inside (Black and
//! Rogaway 2002): a function of the seed, the epoch and the index, and nothing is held in memory
//! however many windows there are.

/// The order in which windows are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowOrder {
    seed: u64,
    windows: u64,
}

impl WindowOrder {
    /// The order of `windows` windows, at least one, under `seed`.
    pub fn new(seed: u64, windows: u64) -> Self {
        Self {
            seed,
            windows: windows.max(1),
        }
    }

    /// Windows in an epoch.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// The window of a sample; samples count on through the epochs.
    pub fn window(&self, sample: u64) -> u64 {
        let (epoch, mut index) = (sample / self.windows, sample % self.windows);
        let half_bits = (64 - (self.windows - 1).leading_zeros()).div_ceil(2).max(1);
        let key = mix(self.seed ^ mix(epoch));
        loop {
            index = feistel(index, half_bits, key);
            if index < self.windows {
                return index;
            }
        }
    }
}

/// A permutation of `0..4^half_bits`.
fn feistel(index: u64, half_bits: u32, key: u64) -> u64 {
    let mask = (1 << half_bits) - 1;
    let (mut left, mut right) = (index >> half_bits, index & mask);
    for round in 0..4 {
        (left, right) = (right, left ^ (mix(key ^ (right << 8) ^ round) & mask));
    }
    (left << half_bits) | right
}

/// The finaliser of SplitMix64.
pub(super) fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::WindowOrder;

    #[test]
    fn every_epoch_visits_every_window_once_in_another_order() {
        for windows in [1, 2, 3, 4, 5, 17, 64, 65, 1000] {
            let order = WindowOrder::new(7, windows);
            let epochs: Vec<Vec<u64>> = (0..3)
                .map(|epoch| {
                    (0..windows)
                        .map(|i| order.window(epoch * windows + i))
                        .collect()
                })
                .collect();
            for epoch in &epochs {
                let mut sorted = epoch.clone();
                sorted.sort_unstable();
                assert!(
                    sorted.into_iter().eq(0..windows),
                    "{windows} windows: {epoch:?}"
                );
            }
            assert!(windows < 17 || epochs[0] != epochs[1], "{windows} windows");
        }
    }

    #[test]
    fn seeds_give_different_orders_and_equal_seeds_equal_ones() {
        let first = |seed| {
            (0..50)
                .map(|i| WindowOrder::new(seed, 50).window(i))
                .collect::<Vec<_>>()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }
}
