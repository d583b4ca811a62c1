//! Every number of the Nemotron-H fixtures: logits, hidden states, mixer outputs, intermediate
//! values, loss, and the gradient of every parameter.
//!
//! The fixtures were made with transformers and, for `ref64.*`, with an independent float64 model
//! (golden/nemotron-h/README.md). Limits are the README's: two correct f32 programs differ by at
//! most 2e-6 in logits and 9e-6 in gradients there, and each of 30 plausible mistakes (order of
//! gate and norm, one norm group, eps outside the root, a dt floor, a shifted convolution, ..)
//! moves some fixture by 3e-2 or more.

use std::collections::BTreeMap;
use std::path::Path;

use burn::backend::{Autodiff, Flex, NdArray};
use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::{DType, Int, Tensor};
use burn_hybrid_ops::{HybridEngine, TrainingEngine};
use burn_nvfp4_models::checkpoint::hf::{hf_key, is_transposed, load_hf, load_hf_config};
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::nn::loss::cross_entropy;

use super::support::{Io, Numbers, fixtures, int_tensor};

const FORWARD_LIMIT: f64 = 2e-5;
const GRADIENT_LIMIT: f64 = 1e-4;
/// bf16 keeps 8 bits; transformers' own bf16 run is 1.2e-2 from its f32 run.
const BF16_LIMIT: f64 = 5e-2;

/// What was compared in one fixture, and how far off the worst tensor was.
#[derive(Default)]
struct Report {
    /// Per kind of number: tensors compared, worst error, its key.
    kinds: BTreeMap<&'static str, (usize, f64, String)>,
    failures: Vec<String>,
}

impl Report {
    fn compare(&mut self, kind: &'static str, key: &str, got: &Numbers, want: &Numbers) {
        let limit = match kind {
            "gradients" => GRADIENT_LIMIT,
            "bf16" => BF16_LIMIT,
            _ => FORWARD_LIMIT,
        };
        let error = got.error_to(want);
        let entry = self.kinds.entry(kind).or_insert((0, -1.0, String::new()));
        entry.0 += 1;
        if error > entry.1 {
            (entry.1, entry.2) = (error, key.to_owned());
        }
        if error > limit {
            self.failures
                .push(format!("{key}: {error:.2e} > {limit:.0e}"));
        }
    }

    fn print(&self, fixture: &Path) -> String {
        let name = fixture.file_name().unwrap().to_string_lossy();
        let kinds = self.kinds.iter().map(|(kind, (count, worst, key))| {
            format!("\n    {kind:<10} {count:>3} tensors, worst {worst:.1e} ({key})")
        });
        format!("{name}{}", kinds.collect::<String>())
    }
}

/// Mean cross-entropy of the next token, over all positions but the last.
fn next_token_loss<B: HybridEngine>(logits: Tensor<B, 3>, ids: Tensor<B, 2, Int>) -> Tensor<B, 1> {
    let [batch, seq, vocab] = logits.dims();
    let n = batch * (seq - 1);
    let targets = ids.narrow(1, 1, seq - 1).reshape([n]);
    cross_entropy(logits.narrow(1, 0, seq - 1).reshape([n, vocab]), targets)
}

/// Compares everything that a full forward and backward pass can reproduce.
fn check_fixture<B: TrainingEngine>(dir: &Path) -> Report {
    let device = B::Device::default();
    let (_, model) = load_hf::<B>(dir, &device).unwrap_or_else(|e| panic!("{e}"));
    let io = Io::read(dir);
    let ids = io.ids::<B>("input_ids", &device);

    let mut seen = BTreeMap::new();
    let mut observer = |name: &str, value: Tensor<B, 3>| {
        seen.insert(name.to_owned(), Numbers::of(value));
    };
    let logits = model.forward_observed(ids.clone(), &mut observer);
    let loss = next_token_loss(logits.clone(), ids);
    let gradients = gradients(&model, &loss);
    let (logits, loss) = (Numbers::of(logits), Numbers::of(loss));
    let model = model.valid();

    let mut report = Report::default();
    for (key, want) in &io.0 {
        let mut compare = |kind, got: &Numbers| report.compare(kind, key, got, want);
        let parts: Vec<&str> = key.split('.').collect();
        match parts[..] {
            ["input_ids"] | ["masked", "input_ids" | "attention_mask"] => {}
            ["decode", "prompt_len" | "tokens"] | ["split", "at"] => {}
            ["logits"] | ["ref64", "logits"] => {
                compare("logits", &logits.tail(logits.shape[1] - want.shape[1]));
            }
            ["loss"] | ["ref64", "loss"] => compare("loss", &loss),
            ["hidden", name @ ("embed" | "norm_f")] => compare("hidden", &seen[name]),
            ["hidden", i] => compare("hidden", &seen[&format!("layers.{i}")]),
            ["mixer", i] => compare("mixer", &seen[&format!("layers.{i}.mixer")]),
            ["trace", i, name] => compare("trace", &seen[&format!("layers.{i}.mixer.{name}")]),
            ["grad", ..] => compare("gradients", &gradients[key.strip_prefix("grad.").unwrap()]),
            ["decode", "logits"] => compare("decode", &decoded::<B>(&model, &io)),
            ["split", "logits"] => compare("split", &logits.tail(io.index("split.at"))),
            ["masked", "logits"] => compare("masked", &padded::<B>(&model, &io)),
            ["hf_floor", "logits"] => {
                let got = transformers_floor::<B>(dir, &io);
                compare("hf_floor", &got.tail(got.shape[1] - want.shape[1]));
            }
            // Contents of caches, and a run in bf16: not of a full f32 pass.
            ["split", "cache", ..] | ["bf16", "logits"] => {}
            _ => panic!("{}: nothing is known about {key}", dir.display()),
        }
    }
    report
}

/// The gradient of every parameter by checkpoint key, in the layout of the checkpoint.
fn gradients<B: TrainingEngine>(
    model: &HybridLm<B>,
    loss: &Tensor<B, 1>,
) -> BTreeMap<String, Numbers> {
    fn get<B: TrainingEngine, const D: usize>(
        grads: &GradientsParams,
        id: burn::module::ParamId,
    ) -> Option<Numbers> {
        grads.get::<B::InnerBackend, D>(id).map(Numbers::of)
    }
    let grads = GradientsParams::from_grads(loss.backward(), model);
    let found = model.parameters().into_iter().map(|param| {
        let grad = match param.shape.len() {
            1 => get::<B, 1>(&grads, param.id),
            2 => get::<B, 2>(&grads, param.id),
            3 => get::<B, 3>(&grads, param.id),
            rank => panic!("{} has rank {rank}", param.name),
        };
        let grad = grad.unwrap_or_else(|| panic!("{} has no gradient", param.name));
        let matrix = param.shape.len() == 2 && param.name != "embeddings.weight";
        (
            hf_key(&param.name),
            if matrix { grad.transposed() } else { grad },
        )
    });
    found.collect()
}

/// The distributions that greedy decoding picked from, by one full pass over prompt and answer.
fn decoded<B: TrainingEngine>(model: &HybridLm<B::InnerBackend>, io: &Io) -> Numbers {
    let device = B::Device::default();
    let prompt = io.index("decode.prompt_len");
    let ids = io
        .ids::<B::InnerBackend>("input_ids", &device)
        .narrow(1, 0, prompt);
    let tokens = io.ids::<B::InnerBackend>("decode.tokens", &device);
    let steps = tokens.dims()[1];
    let logits = Numbers::of(model.forward(Tensor::cat(vec![ids, tokens], 1)));
    logits.positions(prompt - 1, prompt - 1 + steps)
}

/// Logits of a left-padded batch, zero at padding.
fn padded<B: TrainingEngine>(model: &HybridLm<B::InnerBackend>, io: &Io) -> Numbers {
    let device = B::Device::default();
    let ids = io.ids::<B::InnerBackend>("masked.input_ids", &device);
    let tokens = io
        .ids::<B::InnerBackend>("masked.attention_mask", &device)
        .bool();
    let mut logits = Numbers::of(model.forward_padded(ids, tokens));
    let width = logits.shape[2];
    let mask = &io.0["masked.attention_mask"].values;
    for (row, &real) in logits.values.chunks_mut(width).zip(mask) {
        if real == 0.0 {
            row.fill(0.0);
        }
    }
    logits
}

/// What unmodified transformers computes, with its floor under dt.
fn transformers_floor<B: TrainingEngine>(dir: &Path, io: &Io) -> Numbers {
    let device = B::Device::default();
    let (config, model) = load_hf::<B::InnerBackend>(dir, &device).unwrap();
    let model = model.with_dt_limit(config.with_transformers_dt_floor().dt_limit);
    Numbers::of(model.forward(io.ids("input_ids", &device)))
}

/// Runs all fixtures; prints what was compared.
fn check_all<B: TrainingEngine>() -> Vec<String> {
    let mut lines = Vec::new();
    let mut failures = Vec::new();
    let mut compared = 0;
    for dir in fixtures() {
        let report = check_fixture::<B>(&dir);
        let count: usize = report.kinds.values().map(|(count, ..)| count).sum();
        assert!(count > 0, "nothing was compared in {}", dir.display());
        compared += count;
        lines.push(report.print(&dir));
        failures.extend(
            report
                .failures
                .iter()
                .map(|f| format!("{}: {f}", dir.display())),
        );
    }
    lines.push(format!(
        "{compared} tensors on {}",
        B::name(&B::Device::default())
    ));
    assert!(
        failures.is_empty(),
        "{}\n{}",
        lines.join("\n"),
        failures.join("\n")
    );
    lines
}

#[test]
fn ndarray_reproduces_every_number_of_every_fixture() {
    println!("{}", check_all::<Autodiff<NdArray<f32>>>().join("\n"));
}

#[test]
fn flex_reproduces_every_number_of_every_fixture() {
    println!("{}", check_all::<Autodiff<Flex>>().join("\n"));
}

/// Activations and matrices in bf16, everything that §1.4 of the reference names in f32.
#[test]
fn bf16_activations_stay_near_the_bf16_run_of_transformers() {
    let device = Default::default();
    let mut report = Report::default();
    for dir in fixtures() {
        let io = Io::read(&dir);
        let Some(want) = io.0.get("bf16.logits") else {
            continue;
        };
        let (_, model) = load_hf::<Flex>(&dir, &device).unwrap();
        let model = model.cast_matrices(DType::BF16);
        assert_eq!(model.activation_dtype(), DType::BF16);
        let logits = model.forward(int_tensor(&io.0["input_ids"], &device));
        assert_eq!(logits.dtype(), DType::F32);
        let logits = Numbers::of(logits);
        report.compare("bf16", "bf16.logits", &logits, want);
        report.compare("bf16", "logits", &logits, &io.0["logits"]);
        println!("{}", report.print(&dir));
    }
    assert!(!report.kinds.is_empty(), "no fixture has a bf16 run");
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

#[test]
fn only_matrices_other_than_the_embedding_are_stored_transposed() {
    let config = load_hf_config(&fixtures()[0]).unwrap();
    for spec in config.params() {
        let linear = spec.name.contains("_proj.weight") || spec.name == "lm_head.weight";
        assert_eq!(is_transposed(&spec), linear, "{}", spec.name);
    }
}
