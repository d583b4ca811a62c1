//! Initial values: bits are a function of the seed and the parameter's name.
//!
//! Drawn on the host in f64 and rounded to f32, so every backend starts from the same bits, and a
//! parameter keeps its values when another one is added or the model is built in another order.
//! Draw i of a parameter is SplitMix64 at counter i, keyed by seed and name; a normal takes two
//! draws (Box-Muller, cosine branch).

use burn::tensor::TensorData;
use burn::tensor::backend::Backend;
use rayon::prelude::*;

use super::HybridLm;
use crate::config::params::{Init, ParamSpec};
use crate::config::{ConfigError, HybridConfig};

impl HybridConfig {
    /// A model with initial values drawn from `seed`, the same bits on every backend.
    ///
    /// # Panics
    /// With the [`ConfigError`] of [`HybridConfig::validate`], if the configuration is not valid.
    pub fn init<B: Backend>(&self, device: &B::Device, seed: u64) -> HybridLm<B> {
        self.try_init(device, seed)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`Self::init`] for a configuration that has not been checked.
    ///
    /// # Errors
    /// What [`HybridConfig::validate`] finds.
    pub fn try_init<B: Backend>(
        &self,
        device: &B::Device,
        seed: u64,
    ) -> Result<HybridLm<B>, ConfigError> {
        self.validate()?;
        Ok(HybridLm::build(self, device, &mut |spec| {
            TensorData::new(initial_values(spec, seed), spec.shape.clone())
        }))
    }
}

/// The initial values of one parameter, row-major.
pub fn initial_values(spec: &ParamSpec, seed: u64) -> Vec<f32> {
    let first = Draws::new(seed, &spec.name);
    let mut values = vec![0.0; spec.shape.iter().product()];
    let chunks = values.par_chunks_mut(CHUNK).enumerate();
    chunks.for_each(|(index, chunk)| {
        let mut draws = first.after((index * CHUNK) as u64 * draws_of(spec.init));
        chunk.fill_with(|| draws.value(spec.init));
    });
    values
}

/// Values that one core draws in a row.
const CHUNK: usize = 1 << 15;

/// Draws that a value takes.
fn draws_of(init: Init) -> u64 {
    match init {
        Init::Constant(_) => 0,
        Init::Normal { .. } => 2,
        Init::Uniform { .. }
        | Init::LogOfUniform { .. }
        | Init::InverseSoftplusLogUniform { .. } => 1,
    }
}

/// The stream of uniform draws of one parameter.
#[derive(Clone, Copy)]
struct Draws {
    state: u64,
}

/// Odd constant of SplitMix64: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Draws {
    fn new(seed: u64, name: &str) -> Self {
        // FNV-1a over the name, then both words through the mixer.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Self {
            state: mix(mix(seed.wrapping_add(GOLDEN)) ^ hash),
        }
    }

    /// The stream behind its next `count` draws.
    fn after(self, count: u64) -> Self {
        let state = self.state.wrapping_add(GOLDEN.wrapping_mul(count));
        Self { state }
    }

    fn value(&mut self, init: Init) -> f32 {
        let value = match init {
            Init::Constant(value) => f64::from(value),
            Init::Normal { std } => std * self.normal(),
            Init::Uniform { low, high } => self.uniform(low, high),
            Init::LogOfUniform { low, high } => self.uniform(low, high).ln(),
            Init::InverseSoftplusLogUniform { min, max, floor } => {
                let dt = self.uniform(min.ln(), max.ln()).exp().max(floor);
                // ln(exp(dt) - 1) without cancellation for small dt.
                dt + (-(-dt).exp_m1()).ln()
            }
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to f32 is the point"
        )]
        {
            value as f32
        }
    }

    fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    fn normal(&mut self) -> f64 {
        // 1 - unit is in (0, 1], where the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Uniform on [0, 1), 53 bits.
    fn unit(&mut self) -> f64 {
        self.state = self.state.wrapping_add(GOLDEN);
        (mix(self.state) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// The output function of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_drawn_on_all_cores_are_those_of_one() {
        let dt = Init::InverseSoftplusLogUniform {
            min: 1e-3,
            max: 0.1,
            floor: 1e-4,
        };
        let (low, high) = (1.0, 16.0);
        for init in [
            Init::Constant(0.5),
            Init::Normal { std: 0.02 },
            Init::Uniform { low, high },
            Init::LogOfUniform { low, high },
            dt,
        ] {
            let spec = ParamSpec {
                name: "layers.0.mixer.x".to_owned(),
                shape: vec![3, CHUNK],
                init,
            };
            let mut draws = Draws::new(7, &spec.name);
            let one_by_one: Vec<_> = (0..3 * CHUNK).map(|_| draws.value(init)).collect();
            assert!(initial_values(&spec, 7) == one_by_one, "{init:?}");
        }
    }
}
