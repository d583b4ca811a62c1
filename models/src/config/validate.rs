//! The check of a configuration, before anything is allocated.

use super::{ConfigError, DtLimit, HybridConfig};

/// Largest value of any dimension. Bounds every product below 2^63 and rejects garbage early.
const MAX_DIMENSION: usize = 1 << 24;

/// Largest number of blocks: several times the family's deepest (118). The table of parameters has
/// an entry for each tensor of each, before anybody knows whether a file has it.
const MAX_BLOCKS: usize = 1024;

/// Largest number of parameters: well above the family's largest (56 billion).
const MAX_PARAMS: u64 = 1 << 42;

impl HybridConfig {
    /// Checks every dimension, divisibility and range.
    ///
    /// # Errors
    /// The first violation, in the order of the fields.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value, min) in self.dimensions() {
            if value < min {
                return Err(ConfigError::TooSmall { field, value, min });
            }
            if value > MAX_DIMENSION {
                let (value, max) = (value as u64, MAX_DIMENSION as u64);
                return Err(ConfigError::TooLarge { field, value, max });
            }
        }
        if self.pattern.is_empty() {
            return Err(ConfigError::EmptyPattern);
        }
        if self.n_blocks() > MAX_BLOCKS {
            return Err(ConfigError::TooLarge {
                field: "number of blocks",
                value: self.n_blocks() as u64,
                max: MAX_BLOCKS as u64,
            });
        }
        for (field, value, divisor_field, divisor) in [
            (
                "n_attention_heads",
                self.n_attention_heads,
                "n_kv_heads",
                self.n_kv_heads,
            ),
            (
                "n_mamba_heads",
                self.n_mamba_heads,
                "n_groups",
                self.n_groups,
            ),
        ] {
            if !value.is_multiple_of(divisor) {
                return Err(ConfigError::NotDivisible {
                    field,
                    value,
                    divisor_field,
                    divisor,
                });
            }
        }
        for (field, value, max) in [
            (
                "d_inner",
                self.n_mamba_heads.checked_mul(self.mamba_head_dim),
                MAX_DIMENSION,
            ),
            (
                "attention width",
                self.n_attention_heads.checked_mul(self.attention_head_dim),
                MAX_DIMENSION,
            ),
            (
                "n_groups * d_state",
                self.n_groups.checked_mul(self.d_state),
                MAX_DIMENSION,
            ),
        ] {
            if value.is_none_or(|value| value > max) {
                let value = value.map_or(u64::MAX, |value| value as u64);
                return Err(ConfigError::TooLarge {
                    field,
                    value,
                    max: max as u64,
                });
            }
        }
        self.validate_reals()?;
        match self.checked_num_params() {
            Some(count) if count <= MAX_PARAMS => Ok(()),
            count => Err(ConfigError::TooLarge {
                field: "parameter count",
                value: count.unwrap_or(u64::MAX),
                max: MAX_PARAMS,
            }),
        }
    }

    /// Name, value and least value of every dimension.
    fn dimensions(&self) -> [(&'static str, usize, usize); 14] {
        [
            ("vocab_size", self.vocab_size, 1),
            ("d_model", self.d_model, 1),
            ("n_blocks", self.pattern.len().max(1), 1),
            ("n_attention_heads", self.n_attention_heads, 1),
            ("n_kv_heads", self.n_kv_heads, 1),
            ("attention_head_dim", self.attention_head_dim, 1),
            ("d_ffn", self.d_ffn, 1),
            ("n_mamba_heads", self.n_mamba_heads, 1),
            ("mamba_head_dim", self.mamba_head_dim, 1),
            ("n_groups", self.n_groups, 1),
            ("d_state", self.d_state, 1),
            // One tap has no window to carry from one call to the next.
            ("d_conv", self.d_conv, 2),
            ("chunk_len", self.chunk_len, 1),
            ("context_len", self.context_len, 1),
        ]
    }

    fn validate_reals(&self) -> Result<(), ConfigError> {
        let positive = |field, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                let range = "finite and greater than 0";
                Err(ConfigError::OutOfRange {
                    field,
                    value,
                    range,
                })
            }
        };
        positive("norm_eps", self.norm_eps)?;
        positive("init_std", self.init_std)?;
        positive("dt_init.min", self.dt_init.min)?;
        positive("dt_init.floor", self.dt_init.floor)?;
        positive("dt_init.max", self.dt_init.max)?;
        if self.dt_init.max < self.dt_init.min {
            return Err(ConfigError::OutOfRange {
                field: "dt_init.max",
                value: self.dt_init.max,
                range: "at least dt_init.min",
            });
        }
        let DtLimit { min, max } = self.dt_limit;
        if !(min.is_finite() && min >= 0.0) {
            let range = "finite and at least 0";
            return Err(ConfigError::OutOfRange {
                field: "dt_limit.min",
                value: min,
                range,
            });
        }
        match max {
            Some(value) if !(value.is_finite() && value > min) => Err(ConfigError::OutOfRange {
                field: "dt_limit.max",
                value,
                range: "finite and greater than dt_limit.min",
            }),
            _ => Ok(()),
        }
    }

    /// [`Self::num_params`] before the dimensions are known to be sane.
    fn checked_num_params(&self) -> Option<u64> {
        self.params()
            .iter()
            .try_fold(0u64, |sum, spec| sum.checked_add(spec.checked_numel()?))
    }
}
