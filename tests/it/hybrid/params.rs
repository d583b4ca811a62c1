//! Parameter counts, names, initial values and decay rules.

use std::collections::BTreeSet;
use std::fs;

use burn::backend::{Flex, NdArray};
use burn::module::Module;
use burn::tensor::activation::softplus;
use burn::tensor::backend::Backend;
use burn_nvfp4_models::config::params::{Init, ParamSpec};
use burn_nvfp4_models::config::{Bias, HybridConfig, MixerKind};
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::hybrid::block::Mixer;
use burn_nvfp4_models::hybrid::init::initial_values;
use serde_json::Value;

use super::support::{Numbers, fixture_root};

#[test]
fn derived_numbers_equal_those_of_transformers() {
    let root = fixture_root().join("configs");
    let expected = fs::read_to_string(root.join("expected.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    let models = expected.as_object().unwrap();
    assert!(!models.is_empty());
    for (name, want) in models {
        let text = fs::read_to_string(root.join(name).join("config.json")).unwrap();
        let config = HybridConfig::from_hf_json(&text).unwrap();
        let kinds = [
            ("mamba", MixerKind::Mamba),
            ("attention", MixerKind::Attention),
            ("mlp", MixerKind::Mlp),
        ];
        for (key, kind) in kinds {
            assert_eq!(
                config.pattern.count(kind),
                want["layers"][key],
                "{name} {key}"
            );
            assert_eq!(
                config.num_params_of(kind),
                want["params_per_block"][key],
                "{name} {key}"
            );
        }
        let got: Vec<(&str, Value)> = vec![
            ("num_params", config.num_params().into()),
            ("num_tensors", config.params().len().into()),
            ("num_layers", config.n_blocks().into()),
            ("d_inner", config.d_inner().into()),
            ("conv_dim", config.conv_dim().into()),
            ("in_proj_out", config.in_proj_out().into()),
            ("gated_norm_group", config.gated_norm_group().into()),
            (
                "attention_layers",
                config.pattern.indices(MixerKind::Attention).into(),
            ),
            (
                "state_bytes_f32_per_sequence",
                config.state_bytes_f32().into(),
            ),
            (
                "kv_bytes_bf16_per_token",
                config.kv_bytes_bf16_per_token().into(),
            ),
        ];
        for (key, value) in got {
            assert_eq!(value, want[key], "{name} {key}");
        }
    }
}

#[test]
fn presets_are_as_large_as_they_say_and_have_whole_blocks() {
    let names: Vec<_> = HybridConfig::preset_names().collect();
    let sizes = [1e6, 5e6, 30e6, 130e6, 1e9, 4e9, 8e9, 9e9, 12e9, 47e9, 56e9];
    assert_eq!(names.len(), sizes.len());
    for (name, size) in names.into_iter().zip(sizes) {
        let toy = size < 2e9;
        let config = HybridConfig::preset(name, if toy { 256 } else { 131_072 }).unwrap();
        let params = config.num_params() as f64;
        let limit = if toy { 0.12 } else { 0.13 };
        assert!(
            (params / size - 1.0).abs() < limit,
            "{name} has {params:e} parameters"
        );
        for spec in config
            .params()
            .iter()
            .filter(|spec| spec.name.contains("_proj.weight"))
        {
            assert!(spec.shape.iter().all(|n| n % 16 == 0), "{name} {spec:?}");
        }
    }
}

/// All optional parameters on.
fn with_biases() -> HybridConfig {
    HybridConfig {
        mamba_bias: Bias::Learned,
        attention_bias: Bias::Learned,
        mlp_bias: Bias::Learned,
        ..HybridConfig::preset("tiny-1m", 64).unwrap()
    }
}

#[test]
fn modules_hold_exactly_the_parameters_of_the_table() {
    for config in [with_biases(), HybridConfig::preset("tiny-1m", 64).unwrap()] {
        let model = config.init::<NdArray>(&Default::default(), 0);
        let table: Vec<_> = config
            .params()
            .into_iter()
            .map(|s| (s.decays(), s.name, s.shape))
            .collect();
        let module: Vec<_> = model
            .parameters()
            .into_iter()
            .map(|p| (p.decays, p.name, p.shape))
            .collect();
        assert_eq!(module, table);
        assert_eq!(model.num_params() as u64, config.num_params());
    }
}

#[test]
fn linear_names_are_those_of_the_modules() {
    let config = HybridConfig::preset("small-5m", 64).unwrap();
    let model = config.init::<NdArray>(&Default::default(), 0);
    let mut names = Vec::new();
    for layer in &model.layers {
        let linears = match &layer.mixer {
            Mixer::Mamba(m) => vec![&m.in_proj, &m.out_proj],
            Mixer::Attention(a) => vec![&a.q_proj, &a.k_proj, &a.v_proj, &a.o_proj],
            Mixer::Mlp(m) => vec![&m.up_proj, &m.down_proj],
        };
        names.extend(linears.into_iter().map(|linear| linear.name.clone()));
    }
    names.push(model.lm_head.name.clone());
    assert_eq!(names, config.linear_names());
    assert_eq!(names[0], "layers.0.mixer.in_proj");
}

#[test]
fn only_matrices_and_the_convolution_decay() {
    let kept: BTreeSet<String> = with_biases()
        .params()
        .into_iter()
        .filter(|spec| !spec.decays())
        .map(|spec| {
            spec.name
                .rsplit('.')
                .take(2)
                .collect::<Vec<_>>()
                .join(" of ")
        })
        .collect();
    let expected = [
        "a_log of mixer",
        "bias of conv1d",
        "bias of down_proj",
        "bias of in_proj",
        "bias of k_proj",
        "bias of o_proj",
        "bias of out_proj",
        "bias of q_proj",
        "bias of up_proj",
        "bias of v_proj",
        "d_skip of mixer",
        "dt_bias of mixer",
        "weight of norm",
        "weight of norm_f",
    ];
    assert_eq!(
        kept.iter().map(String::as_str).collect::<Vec<_>>(),
        expected
    );
}

/// All values of a model, as bits of f32.
fn bits<B: Backend>(model: &HybridLm<B>) -> Vec<(String, Vec<u32>)> {
    struct Bits(Vec<Vec<u32>>);
    impl<B: Backend> burn::module::ModuleVisitor<B> for Bits {
        fn visit_float<const D: usize>(
            &mut self,
            param: &burn::module::Param<burn::tensor::Tensor<B, D>>,
        ) {
            let data = param.val().into_data().convert::<f32>();
            self.0.push(data.iter::<f32>().map(f32::to_bits).collect());
        }
    }
    let mut values = Bits(Vec::new());
    model.visit(&mut values);
    model
        .parameters()
        .into_iter()
        .map(|p| p.name)
        .zip(values.0)
        .collect()
}

#[test]
fn initial_bits_depend_on_seed_and_name_alone() {
    let config = HybridConfig::preset("tiny-1m", 64).unwrap();
    let ndarray = bits(&config.init::<NdArray>(&Default::default(), 7));
    assert_eq!(ndarray, bits(&config.init::<Flex>(&Default::default(), 7)));
    assert_eq!(
        ndarray,
        bits(&config.init::<NdArray>(&Default::default(), 7))
    );
    let other = bits(&config.init::<NdArray>(&Default::default(), 8));
    for ((name, a), (_, b)) in ndarray.iter().zip(&other) {
        let constant = a.iter().all(|bits| bits == &a[0]);
        assert_eq!(a == b, constant, "{name}");
    }
    // Another pattern does not move the values of the blocks that it shares.
    let shorter = HybridConfig {
        pattern: "M-".parse().unwrap(),
        ..config
    };
    for (name, values) in bits(&shorter.init::<NdArray>(&Default::default(), 7)) {
        let (_, longer) = ndarray.iter().find(|(n, _)| *n == name).unwrap();
        let scaled_by_depth = name.contains("out_proj") || name.contains("down_proj");
        assert_eq!(values == *longer, !scaled_by_depth, "{name}");
    }
}

/// Pinned: a change of these bits makes every seeded run another run.
#[test]
fn initial_bits_are_the_ones_of_all_earlier_runs() {
    let spec = |name: &str, init| ParamSpec {
        name: name.into(),
        shape: vec![2],
        init,
    };
    let draw = |init| initial_values(&spec("layers.0.mixer.x", init), 42);
    let dt = Init::InverseSoftplusLogUniform {
        min: 1e-3,
        max: 0.1,
        floor: 1e-4,
    };
    let got: Vec<Vec<f32>> = [
        Init::Constant(1.0),
        Init::Normal { std: 1.0 },
        Init::Uniform {
            low: -0.5,
            high: 0.5,
        },
        Init::LogOfUniform {
            low: 1.0,
            high: 16.0,
        },
        dt,
    ]
    .into_iter()
    .map(draw)
    .collect();
    let want: [[f32; 2]; 5] = [
        [1.0, 1.0],
        [-1.5945654, -0.016347596],
        [0.35143137, -0.09794066],
        [2.6225991, 1.9503133],
        [-2.9614377, -5.053017],
    ];
    assert_eq!(got, want);
}

#[test]
fn initial_values_have_megatrons_distributions() {
    let config = HybridConfig::preset("small-5m", 512).unwrap();
    let model = config.init::<NdArray>(&Default::default(), 1);
    let std = |numbers: &Numbers| {
        let n = numbers.values.len() as f64;
        let mean = numbers.values.iter().sum::<f64>() / n;
        let square = numbers
            .values
            .iter()
            .map(|v| (v - mean).powi(2))
            .sum::<f64>()
            / n;
        assert!(mean.abs() < 5.0 * square.sqrt() / n.sqrt(), "mean {mean}");
        square.sqrt()
    };
    let within = |numbers: &Numbers, low: f64, high: f64| {
        let all = numbers.values.iter();
        let (min, max) = all.fold((f64::MAX, f64::MIN), |(a, b), &v| (a.min(v), b.max(v)));
        let width = high - low;
        assert!(low <= min && min < low + 0.3 * width, "{min} {low}");
        assert!(high - 0.3 * width < max && max <= high, "{max} {high}");
    };
    let depth = (config.n_blocks() as f64).sqrt();
    let Mixer::Mamba(mamba) = &model.layers[0].mixer else {
        panic!("starts with a mamba block")
    };
    for (weight, expected) in [
        (&model.embeddings.weight, 0.02),
        (&model.lm_head.weight, 0.02),
        (&mamba.in_proj.weight, 0.02),
        (&mamba.out_proj.weight, 0.02 / depth),
    ] {
        let got = std(&Numbers::of(weight.val()));
        assert!(
            (got / expected - 1.0).abs() < 0.02,
            "{got} instead of {expected}"
        );
    }
    within(&Numbers::of(mamba.conv1d.weight.val()), -0.5, 0.5);
    within(
        &Numbers::of(mamba.conv1d.bias.as_ref().unwrap().val()),
        -0.5,
        0.5,
    );
    within(
        &Numbers::of(mamba.a_log.val().exp()),
        1.0 - 1e-6,
        16.0 + 1e-5,
    );
    within(
        &Numbers::of(softplus(mamba.dt_bias.val(), 1.0).log()),
        1e-3_f64.ln() - 1e-3,
        0.1_f64.ln() + 1e-6,
    );
    assert!(
        Numbers::of(mamba.d_skip.val())
            .values
            .iter()
            .all(|&v| v == 1.0)
    );
    assert!(
        Numbers::of(mamba.norm.weight.val())
            .values
            .iter()
            .all(|&v| v == 1.0)
    );
}
