//! The table of all parameters of a model: names, shapes, initial values, weight decay.
//!
//! The one place where a shape is written down. Initialisation fills it, a checkpoint is checked
//! against it, parameter counts are sums over it, and modules take their tensors out of it by name.
//! Names are module paths: `embeddings.weight`, `layers.{i}.norm.weight`,
//! `layers.{i}.mixer.in_proj.weight`, .., `norm_f.weight`, `lm_head.weight`.
//!
//! Initial values are Megatron-LM's for hybrid models, with which the family was trained (not
//! those of transformers): sigma = `init_std` for matrices that read the residual stream,
//! `sigma / sqrt(L)` for those that write to it (L blocks, one residual branch each).

use super::hf::StoredFloat;
use super::{Bias, HybridConfig, MixerKind};

/// One parameter, before any value exists.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamSpec {
    /// Module path.
    pub name: String,
    /// Shape in Burn's layout: a linear weight is `[d_input, d_output]`.
    pub shape: Vec<usize>,
    /// Where its values start.
    pub init: Init,
}

impl ParamSpec {
    /// Number of elements of a checked configuration.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&len| len as u64).product()
    }

    pub(super) fn checked_numel(&self) -> Option<u64> {
        self.shape
            .iter()
            .try_fold(1u64, |numel, &len| numel.checked_mul(len as u64))
    }

    /// Whether files keep the parameter in f32 when everything else is bf16: what becomes an
    /// exponent or a time step (`a_log`, `d_skip`, `dt_bias`).
    pub fn stays_f32(&self) -> bool {
        let (_, name) = self.name.rsplit_once('.').unwrap_or(("", &self.name));
        matches!(name, "a_log" | "d_skip" | "dt_bias")
    }

    /// How the parameter is stored in a file whose other numbers are `stored`.
    pub fn stored(&self, stored: StoredFloat) -> StoredFloat {
        if self.stays_f32() {
            StoredFloat::F32
        } else {
            stored
        }
    }

    /// Whether weight decay applies: not to vectors (norms, biases, `a_log`, `d_skip`, `dt_bias`),
    /// but to embeddings, `lm_head` and the convolution, as Megatron-LM has it.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// The distribution of initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All equal.
    Constant(f32),
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform on `[low, high)`.
    Uniform {
        /// Lower end.
        low: f64,
        /// Upper end.
        high: f64,
    },
    /// Logarithm of a uniform draw: `a_log`, so that `A = -exp(a_log)` is uniform.
    LogOfUniform {
        /// Lower end before the logarithm.
        low: f64,
        /// Upper end before the logarithm.
        high: f64,
    },
    /// Inverse softplus of `max(exp(U(ln min, ln max)), floor)`: `dt_bias`.
    InverseSoftplusLogUniform {
        /// Smallest step.
        min: f64,
        /// Largest step.
        max: f64,
        /// Floor under the step.
        floor: f64,
    },
}

/// Every parameter of the model, in the order of the modules.
pub(super) fn all(config: &HybridConfig) -> Vec<ParamSpec> {
    let sigma = Init::Normal {
        std: config.init_std,
    };
    let embedding = vec![config.vocab_size, config.d_model];
    let mut specs = vec![spec("embeddings.weight", embedding, sigma)];
    for (index, kind) in config.pattern.iter().enumerate() {
        specs.extend(block(config, index, kind));
    }
    specs.push(spec(
        "norm_f.weight",
        vec![config.d_model],
        Init::Constant(1.0),
    ));
    specs.push(spec(
        "lm_head.weight",
        vec![config.d_model, config.vocab_size],
        sigma,
    ));
    specs
}

/// The parameters of block `index`, its norm included.
pub(super) fn block(config: &HybridConfig, index: usize, kind: MixerKind) -> Vec<ParamSpec> {
    let norm = spec("norm.weight", vec![config.d_model], Init::Constant(1.0));
    let mixer = match kind {
        MixerKind::Mamba => mamba(config),
        MixerKind::Attention => attention(config),
        MixerKind::Mlp => mlp(config),
    };
    let mixer = mixer.into_iter().map(|s| ParamSpec {
        name: format!("mixer.{}", s.name),
        ..s
    });
    std::iter::once(norm)
        .chain(mixer)
        .map(|s| ParamSpec {
            name: format!("layers.{index}.{}", s.name),
            ..s
        })
        .collect()
}

fn mamba(config: &HybridConfig) -> Vec<ParamSpec> {
    let heads = vec![config.n_mamba_heads];
    let (d_inner, conv_dim) = (config.d_inner(), config.conv_dim());
    // Kaiming uniform with a = sqrt(5) over `d_conv` inputs is U(±1/sqrt(d_conv)).
    let bound = 1.0 / (config.d_conv as f64).sqrt();
    let conv = Init::Uniform {
        low: -bound,
        high: bound,
    };
    let dt = config.dt_init;
    let dt = Init::InverseSoftplusLogUniform {
        min: dt.min,
        max: dt.max,
        floor: dt.floor,
    };

    let mut specs = linear(
        "in_proj",
        [config.d_model, config.in_proj_out()],
        reads(config),
        config.mamba_bias,
    );
    specs.push(spec(
        "conv1d.weight",
        vec![conv_dim, 1, config.d_conv],
        conv,
    ));
    if config.conv_bias.is_learned() {
        specs.push(spec("conv1d.bias", vec![conv_dim], conv));
    }
    specs.push(spec("dt_bias", heads.clone(), dt));
    specs.push(spec(
        "a_log",
        heads.clone(),
        Init::LogOfUniform {
            low: 1.0,
            high: 16.0,
        },
    ));
    specs.push(spec("d_skip", heads, Init::Constant(1.0)));
    specs.push(spec("norm.weight", vec![d_inner], Init::Constant(1.0)));
    specs.extend(linear(
        "out_proj",
        [d_inner, config.d_model],
        writes(config),
        config.mamba_bias,
    ));
    specs
}

fn attention(config: &HybridConfig) -> Vec<ParamSpec> {
    let (d_model, q, kv) = (config.d_model, config.attention_width(), config.kv_width());
    let bias = config.attention_bias;
    [
        linear("q_proj", [d_model, q], reads(config), bias),
        linear("k_proj", [d_model, kv], reads(config), bias),
        linear("v_proj", [d_model, kv], reads(config), bias),
        linear("o_proj", [q, d_model], writes(config), bias),
    ]
    .concat()
}

fn mlp(config: &HybridConfig) -> Vec<ParamSpec> {
    let (d_model, d_ffn, bias) = (config.d_model, config.d_ffn, config.mlp_bias);
    [
        linear("up_proj", [d_model, d_ffn], reads(config), bias),
        linear("down_proj", [d_ffn, d_model], writes(config), bias),
    ]
    .concat()
}

/// Initial values of a matrix that reads the residual stream.
fn reads(config: &HybridConfig) -> Init {
    Init::Normal {
        std: config.init_std,
    }
}

/// Initial values of a matrix that writes to the residual stream.
fn writes(config: &HybridConfig) -> Init {
    Init::Normal {
        std: config.init_std / (config.n_blocks() as f64).sqrt(),
    }
}

fn linear(name: &str, shape: [usize; 2], init: Init, bias: Bias) -> Vec<ParamSpec> {
    let mut specs = vec![spec(&format!("{name}.weight"), shape.to_vec(), init)];
    if bias.is_learned() {
        specs.push(spec(
            &format!("{name}.bias"),
            vec![shape[1]],
            Init::Constant(0.0),
        ));
    }
    specs
}

fn spec(name: &str, shape: Vec<usize>, init: Init) -> ParamSpec {
    ParamSpec {
        name: name.into(),
        shape,
        init,
    }
}
