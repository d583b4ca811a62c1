//! What a training step keeps in memory, by count: nothing is allocated.
//!
//! Only what this project decides is counted here, what linears keep for backward and what lives as
//! long as the run. What other operations keep depends on the backend; a device's allocator says
//! what they come to (`cargo bench --bench memory`).

use burn::tensor::DType;
use burn_nvfp4::recipe::{Policy, Progress};
use burn_nvfp4::stats::KeptBytes;

use crate::config::HybridConfig;

/// Bytes of an f32, which parameters, gradients and both moments are in.
const MASTER: u64 = 4;

/// Linears of attention that read the same activation.
const READERS_OF_ONE: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// What lives from step to step, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateBytes {
    /// Master weights.
    pub parameters: u64,
    /// Gradients, while there are any.
    pub gradients: u64,
    /// Both moments of AdamW.
    pub moments: u64,
}

impl StateBytes {
    /// Those of a model: all f32.
    pub fn of(config: &HybridConfig) -> Self {
        let parameters = config.num_params() * MASTER;
        Self {
            parameters,
            gradients: parameters,
            moments: 2 * parameters,
        }
    }
}

/// What the linears of a model keep for backward of so many tokens, in bytes, under the policy at
/// the start of a run. An activation that q, k and v read in one recipe is kept once.
///
/// `None` if that cannot be counted.
pub fn kept_by_linears(
    config: &HybridConfig,
    policy: &Policy,
    tokens: usize,
    activations: DType,
) -> Option<KeptBytes> {
    let params = config.params();
    let mut sum = KeptBytes::default();
    let mut last = None;
    for name in config.linear_names() {
        let weight = format!("{name}.weight");
        let weight = params.iter().find(|param| param.name == weight)?;
        let [d_input, d_output] = weight.shape[..] else {
            return None;
        };
        let recipe = policy.resolve(Some(&name), Progress::default());
        let shape = [tokens, d_input, d_output];
        let kept = KeptBytes::of_linear(&recipe, shape, activations.size())?;
        let reader = name.rsplit_once('.').and_then(|(block, linear)| {
            let reads_one = READERS_OF_ONE.contains(&linear);
            reads_one.then(|| (block.to_owned(), recipe))
        });
        let is_kept = reader.is_some() && reader == last;
        let x = if is_kept { 0 } else { kept.x };
        sum = KeptBytes {
            x: sum.x.checked_add(x)?,
            weight: sum.weight.checked_add(kept.weight)?,
        };
        last = reader;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use burn_nvfp4::recipe::{Recipe, presets};

    use super::*;

    /// A recipe for all linears but `lm_head`, which stays in high precision.
    fn policy(recipe: Recipe) -> Policy {
        let policy = Policy::uniform(recipe);
        policy
            .with_override("lm_head", presets::HIGH_PRECISION)
            .unwrap()
    }

    /// Elements of all quantized linears.
    fn weights(config: &HybridConfig) -> usize {
        let names = config.linear_names();
        let linears = names.iter().filter(|name| *name != "lm_head");
        let params = config.params();
        let numel = |name: &String| {
            let weight = format!("{name}.weight");
            params
                .iter()
                .find(|param| param.name == weight)
                .unwrap()
                .numel()
        };
        usize::try_from(linears.map(numel).sum::<u64>()).unwrap()
    }

    /// The bar is 0.30. Of activations alone it is 0.281 an element, and a little more because
    /// `lm_head` keeps its own in bf16.
    #[test]
    fn linears_keep_three_tenths_of_what_they_keep_in_bf16() {
        let ratio = |preset: &str, tokens: usize| {
            let config = HybridConfig::preset(preset, 32_768).unwrap();
            let kept =
                |recipe| kept_by_linears(&config, &policy(recipe), tokens, DType::BF16).unwrap();
            let (bf16, nvfp4) = (kept(presets::HIGH_PRECISION), kept(presets::NVIDIA));
            assert_eq!(bf16.weight, 0, "the master weight is no copy");
            let packed = (nvfp4.x + nvfp4.weight) as f64;
            let copies = 2 * weights(&config);
            [
                nvfp4.x as f64 / bf16.x as f64,
                packed / bf16.x as f64,
                packed / (bf16.x + copies) as f64,
            ]
        };
        // 8 sequences of the context length: packed weights against no weights at all.
        let [x, strict, with_copies] = ratio("small-130m", 8 * 4096);
        assert!(0.28 < x && x < 0.29, "{x}");
        assert!(strict <= 0.30, "{strict}");
        assert!(with_copies <= 0.30, "{with_copies}");
        // Where tokens are few the weights show, unless bf16 keeps a copy of them too.
        for preset in ["small-1b", "4b"] {
            let [x, strict, with_copies] = ratio(preset, 8192);
            assert!(
                x < 0.29 && with_copies < 0.29,
                "{preset}: {x} {with_copies}"
            );
            assert!(strict > 0.30, "{preset}: {strict}");
        }
    }

    #[test]
    fn q_k_and_v_count_one_activation() {
        let mut config = HybridConfig::preset("tiny-1m", 256).unwrap();
        config.pattern = "*".parse().unwrap();
        let kept = kept_by_linears(&config, &policy(presets::HIGH_PRECISION), 32, DType::BF16);
        let attention = config.n_attention_heads * config.attention_head_dim;
        let elements = 32 * (config.d_model + attention + config.d_model);
        assert_eq!(kept.unwrap().x, 2 * elements);
    }
}
