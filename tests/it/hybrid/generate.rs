//! Cached generation: the fixtures' `decode`, `split` and `masked` numbers from the cache, caches
//! against full passes, batches against single rows, and what is refused.
//!
//! Limits are those of `parity`. A cache that loses or shifts one token, forgets padding, or keeps
//! its state in bf16 misses them by orders of magnitude.

use std::num::NonZeroUsize;
use std::path::Path;

use burn::backend::{Flex, NdArray};
use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn_hybrid_ops::HybridEngine;
use burn_nvfp4_models::checkpoint::hf::load_hf;
use burn_nvfp4_models::config::{Bias, HybridConfig, Pattern};
use burn_nvfp4_models::generate::{GenerateError, Generation, Sampling, SamplingError};
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::hybrid::block::Mixer;
use burn_nvfp4_models::hybrid::cache::{Cache, Memory};

use super::support::{Io, Numbers, f64_device, fixture_root, fixtures};

const LIMIT: f64 = 2e-5;

/// Tensors that the committed fixtures have for a cache.
const COMMITTED: usize = 46;

/// Logits of `ids` that go through the cache in pieces of these lengths.
fn in_pieces<B: HybridEngine>(
    model: &HybridLm<B>,
    ids: &Tensor<B, 2, Int>,
    pieces: &[usize],
) -> (Numbers, Cache<B>) {
    let mut cache = Cache::new(model);
    let mut logits = Vec::new();
    for &length in pieces {
        let piece = ids.clone().narrow(1, cache.len(), length);
        logits.push(model.extend(piece, &mut cache));
    }
    (Numbers::of(Tensor::cat(logits, 1)), cache)
}

/// What a fixture's key was compared with, and how far off it was.
type Found = Vec<(String, f64)>;

/// `decode`: the prompt at once, then one token at a time.
fn decode<B: HybridEngine>(model: &HybridLm<B>, io: &Io, found: &mut Found) {
    let device = B::Device::default();
    let prompt = io.index("decode.prompt_len");
    let ids = io.ids::<B>("input_ids", &device).narrow(1, 0, prompt);
    let tokens = io.ids::<B>("decode.tokens", &device);
    let [_, steps] = tokens.dims();
    let mut pieces = vec![prompt];
    pieces.resize(steps, 1);
    let all = Tensor::cat(vec![ids.clone(), tokens.clone()], 1);
    let (logits, _) = in_pieces(model, &all, &pieces);
    let logits = logits.positions(prompt - 1, prompt - 1 + steps);
    let error = logits.error_to(&io.0["decode.logits"]);
    found.push(("decode.logits".to_owned(), error));

    // The same tokens when the generation chooses them.
    let rows = rows(&io.0["input_ids"], prompt);
    let generation = Generation::start(model, &rows, Sampling::GREEDY, &device).unwrap();
    let chosen: Vec<f64> = generation.take(steps).flatten().map(f64::from).collect();
    let chosen = Numbers {
        shape: vec![steps, rows.len()],
        values: chosen,
    };
    assert_eq!(chosen.transposed().values, io.0["decode.tokens"].values);
}

/// `split`: two calls, and what the cache holds between them.
fn split<B: HybridEngine>(model: &HybridLm<B>, io: &Io, found: &mut Found) {
    let ids = io.ids::<B>("input_ids", &B::Device::default());
    let at = io.index("split.at");
    let rest = ids.dims()[1] - at;
    let (logits, _) = in_pieces(model, &ids, &[at, rest]);
    let error = logits.tail(at).error_to(&io.0["split.logits"]);
    found.push(("split.logits".to_owned(), error));

    let (_, cache) = in_pieces(model, &ids, &[at]);
    assert_eq!(cache.len(), at);
    for (index, memory) in cache.blocks().iter().enumerate() {
        let mut compare = |name: &str, got: Numbers| {
            let key = format!("split.cache.{index}.{name}");
            let mut want = io.0[&key].clone();
            if name == "conv_state" {
                // transformers keeps one column more than the convolution can see.
                want = without_oldest(&want);
            }
            found.push((key, got.error_to(&want)));
        };
        match memory {
            Memory::Mamba(state) => {
                let state = state.clone().unwrap();
                compare("conv_state", Numbers::of(state.window.swap_dims(1, 2)));
                compare("ssm_state", Numbers::of(state.ssm));
            }
            Memory::Attention(cache) => {
                assert_eq!(cache.len(), at);
                compare("key", Numbers::of(cache.keys().unwrap()));
                compare("value", Numbers::of(cache.values().unwrap()));
            }
            Memory::Mlp => {}
        }
    }
}

/// `masked`: a left-padded batch, at once and in pieces that cut through its padding.
fn masked<B: HybridEngine>(model: &HybridLm<B>, io: &Io, found: &mut Found) {
    let device = B::Device::default();
    let ids = io.ids::<B>("masked.input_ids", &device);
    let tokens = io.ids::<B>("masked.attention_mask", &device).bool();
    let [_, seq] = ids.dims();
    for cut in [seq, 1, 4, seq / 2, seq - 1] {
        let mut cache = Cache::new(model);
        let mut hidden = Vec::new();
        for (start, length) in [(0, cut), (cut, seq - cut)] {
            if length > 0 {
                let ids = ids.clone().narrow(1, start, length);
                let tokens = tokens.clone().narrow(1, start, length);
                hidden.push(model.extend_hidden(ids, Some(tokens), &mut cache));
            }
        }
        let mut logits = Numbers::of(model.logits(Tensor::cat(hidden, 1)));
        let width = logits.shape[2];
        let mask = &io.0["masked.attention_mask"].values;
        for (row, &real) in logits.values.chunks_mut(width).zip(mask) {
            if real == 0.0 {
                row.fill(0.0);
            }
        }
        let error = logits.error_to(&io.0["masked.logits"]);
        found.push((format!("masked.logits cut at {cut}"), error));
    }
}

/// Drops the first of the last axis.
fn without_oldest(x: &Numbers) -> Numbers {
    let [a, b, c] = x.shape[..] else {
        panic!("rank of {:?}", x.shape)
    };
    let values = x.values.chunks(c).flat_map(|row| &row[1..]).copied();
    Numbers {
        shape: vec![a, b, c - 1],
        values: values.collect(),
    }
}

/// The first `len` ids of each row.
fn rows(ids: &Numbers, len: usize) -> Vec<Vec<u32>> {
    let rows = ids.values.chunks(ids.shape[1]);
    rows.map(|row| row[..len].iter().map(|&id| id as u32).collect())
        .collect()
}

/// Compares the cache's part of all fixtures; says what was compared.
fn check_all<B: HybridEngine>() -> String {
    let (mut compared, mut lines) = (0, String::new());
    for dir in fixtures() {
        let io = Io::read(&dir);
        let model = load::<B>(&dir);
        let mut found = Found::new();
        for (key, check) in [
            (
                "decode.logits",
                decode::<B> as fn(&HybridLm<B>, &Io, &mut Found),
            ),
            ("split.logits", split::<B>),
            ("masked.logits", masked::<B>),
        ] {
            if io.0.contains_key(key) {
                check(&model, &io, &mut found);
            }
        }
        for (key, error) in &found {
            assert!(*error < LIMIT, "{}: {key}: {error:.1e}", dir.display());
        }
        let asked = io.0.keys().filter(|key| key.starts_with("split.cache."));
        let given = found
            .iter()
            .filter(|(key, _)| key.starts_with("split.cache."));
        assert_eq!(given.count(), asked.count(), "{}", dir.display());
        let worst = found.iter().fold(0.0, |worst: f64, (_, e)| worst.max(*e));
        let (name, count) = (dir.display(), found.len());
        lines += &format!("{name}: {count} tensors, worst {worst:.1e}\n");
        compared += found.len();
    }
    assert!(compared >= COMMITTED, "{lines}");
    lines
}

fn load<B: HybridEngine>(dir: &Path) -> HybridLm<B> {
    let (_, model) = load_hf::<B>(dir, &B::Device::default()).unwrap();
    model
}

#[test]
fn ndarray_decodes_splits_and_masks_as_every_fixture_says() {
    println!("{}", check_all::<NdArray<f32>>());
}

#[test]
fn flex_decodes_splits_and_masks_as_every_fixture_says() {
    println!("{}", check_all::<Flex>());
}

/// The preset `tiny-1m` with other blocks, and random weights.
fn tiny<B: HybridEngine>(pattern: &str, device: &B::Device) -> HybridLm<B> {
    let mut config = HybridConfig::preset("tiny-1m", 48).unwrap();
    config.pattern = pattern.parse::<Pattern>().unwrap();
    config.init_std = 0.2;
    config.init(device, 5)
}

/// Ids below 48 that depend on `name`.
fn some_ids(name: u32, len: usize) -> Vec<u32> {
    let len = u32::try_from(len).unwrap();
    (0..len)
        .map(|i| (i * i * 7 + i * 3 + name * 11) % 48)
        .collect()
}

fn tensor<B: HybridEngine>(rows: &[Vec<u32>], device: &B::Device) -> Tensor<B, 2, Int> {
    let ids: Vec<i64> = rows.iter().flatten().map(|&id| i64::from(id)).collect();
    Tensor::from_data(TensorData::new(ids, [rows.len(), rows[0].len()]), device)
}

/// The buffers of keys and values double at 64, 128 and 256 tokens here.
#[test]
fn any_cut_gives_the_logits_of_one_pass() {
    type B = NdArray<f64>;
    let device = f64_device();
    let model = tiny::<B>("M*-M*", &device);
    let ids = tensor(&[some_ids(1, 300), some_ids(2, 300)], &device);
    let whole = Numbers::of(model.forward(ids.clone()));
    let mut one_by_one = vec![60];
    one_by_one.resize(241, 1);
    for pieces in [
        vec![300],
        one_by_one,
        vec![1, 63, 64, 1, 127, 44],
        vec![64, 65, 128, 43],
        vec![200, 100],
    ] {
        let (logits, cache) = in_pieces(&model, &ids, &pieces);
        let error = logits.error_to(&whole);
        assert!(error < 1e-12, "{pieces:?}: {error:.1e}");
        assert_eq!(cache.len(), 300);
    }
}

#[test]
fn a_clone_of_a_cache_is_a_point_to_return_to() {
    let device = Default::default();
    let model = tiny::<Flex>("M*", &device);
    let ids = tensor::<Flex>(&[some_ids(3, 70)], &device);
    let (_, cache) = in_pieces(&model, &ids, &[66]);
    let go_on = |mut cache: Cache<Flex>| {
        let ids = ids.clone().narrow(1, 66, 4);
        Numbers::of(model.extend(ids, &mut cache)).values
    };
    let first = go_on(cache.clone());
    let _ = model.extend(tensor(&[some_ids(9, 30)], &device), &mut cache.clone());
    assert_eq!(go_on(cache), first);
}

#[test]
fn the_state_is_f32_under_bf16_activations() {
    let device = Default::default();
    let model = tiny::<Flex>("M*", &device).cast_matrices(DType::BF16);
    let ids = tensor::<Flex>(&[some_ids(3, 9)], &device);
    let (logits, cache) = in_pieces(&model, &ids, &[5, 1, 3]);
    let whole = Numbers::of(model.forward(ids));
    // Matrices of other shapes may sum in another order and round to the neighbour in bf16.
    assert!(logits.error_to(&whole) < 2e-2);
    for memory in cache.blocks() {
        match memory {
            Memory::Mamba(state) => {
                let state = state.clone().unwrap();
                assert_eq!(state.ssm.dtype(), DType::F32);
                assert_eq!(state.window.dtype(), DType::BF16);
            }
            Memory::Attention(cache) => {
                assert_eq!(cache.keys().unwrap().dtype(), DType::BF16);
            }
            Memory::Mlp => {}
        }
    }
}

/// Prompts of two pieces and more, of unequal length: padding crosses the pieces.
#[test]
fn a_row_of_a_batch_gets_the_tokens_that_it_gets_alone() {
    let device = Default::default();
    let model = tiny::<Flex>("M*-M", &device);
    let prompts = [
        some_ids(1, 1030),
        some_ids(2, 500),
        some_ids(3, 1),
        some_ids(4, 513),
    ];
    let together = Generation::start(&model, &prompts, Sampling::GREEDY, &device).unwrap();
    let together: Vec<Vec<u32>> = together.take(6).collect();
    for (row, prompt) in prompts.iter().enumerate() {
        let alone = Generation::start(&model, &[prompt], Sampling::GREEDY, &device).unwrap();
        let alone: Vec<u32> = alone.take(6).flatten().collect();
        let in_batch: Vec<u32> = together.iter().map(|ids| ids[row]).collect();
        assert_eq!(in_batch, alone, "row {row}");
        // And without any cache.
        let mut ids = prompt.clone();
        for &next in &alone {
            let logits = model.forward(tensor(&[ids.clone()], &device));
            let last = logits.narrow(1, ids.len() - 1, 1);
            let best = Numbers::of(last.argmax(2)).values[0];
            assert_eq!(f64::from(next), best, "row {row} after {} ids", ids.len());
            ids.push(next);
        }
    }
}

/// The bias of `in_proj` stood at padding, in the window that the first tokens of a short row are
/// convolved with.
#[test]
fn a_short_row_gets_its_own_logits_where_in_proj_has_a_bias() {
    type B = NdArray<f64>;
    let device = f64_device();
    let mut config = HybridConfig::preset("tiny-1m", 48).unwrap();
    config.pattern = "M*-M".parse::<Pattern>().unwrap();
    config.init_std = 0.2;
    config.mamba_bias = Bias::Learned;
    let mut model = config.init::<B>(&device, 5);
    for layer in &mut model.layers {
        // Biases start at 0.
        if let Mixer::Mamba(mamba) = &mut layer.mixer {
            let bias = mamba.in_proj.bias.take().unwrap();
            mamba.in_proj.bias = Some(bias.map(|bias| bias + 0.7));
        }
    }
    let rows = [some_ids(1, 9), some_ids(2, 4), some_ids(3, 1)];
    let padding = rows.each_ref().map(|ids| 9 - ids.len());
    let mut padded = Vec::new();
    let mut is_token = Vec::new();
    for (ids, &padding) in rows.iter().zip(&padding) {
        padded.push([vec![0; padding], ids.clone()].concat());
        is_token.extend((0..9).map(|at| at >= padding));
    }
    let ids = tensor::<B>(&padded, &device);
    let tokens = TensorData::new(is_token, [rows.len(), 9]);
    let tokens = Tensor::<B, 2, Bool>::from_data(tokens, &device);
    let mut together = vec![model.forward_padded(ids.clone(), tokens.clone())];
    // And from a cache, with a cut inside of the padding and one behind it.
    for cut in [3, 7] {
        let mut cache = Cache::new(&model);
        let pieces = [(0, cut), (cut, 9 - cut)].map(|(start, length)| {
            let ids = ids.clone().narrow(1, start, length);
            let tokens = tokens.clone().narrow(1, start, length);
            model.extend_hidden(ids, Some(tokens), &mut cache)
        });
        together.push(model.logits(Tensor::cat(Vec::from(pieces), 1)));
    }
    for (row, (ids, padding)) in rows.iter().zip(padding).enumerate() {
        let alone = Numbers::of(model.forward(tensor(std::slice::from_ref(ids), &device)));
        for logits in &together {
            let of_row = logits.clone().narrow(0, row, 1);
            let of_row = Numbers::of(of_row.narrow(1, padding, ids.len()));
            let error = of_row.error_to(&alone);
            assert!(error < 1e-12, "row {row}: {error:.1e}");
        }
    }
}

#[test]
fn the_seed_decides_and_each_row_draws_for_itself() {
    let device = Default::default();
    let model = tiny::<Flex>("M*", &device);
    let text = |seed, rows: usize| -> Vec<Vec<u32>> {
        let sampling = Sampling {
            temperature: 1.5,
            top_k: NonZeroUsize::new(40),
            top_p: Some(0.99),
            seed,
        };
        let prompts = vec![some_ids(1, 12); rows];
        let generation = Generation::start(&model, &prompts, sampling, &device).unwrap();
        generation.take(20).collect()
    };
    assert_eq!(text(7, 1), text(7, 1));
    assert_ne!(text(7, 1), text(8, 1));
    let rows = text(7, 2);
    assert!(rows.iter().any(|ids| ids[0] != ids[1]));
    let first: Vec<Vec<u32>> = rows.iter().map(|ids| vec![ids[0]]).collect();
    assert_eq!(first, text(7, 1));
}

#[test]
fn what_cannot_be_continued_is_refused() {
    let device = Default::default();
    let model = load::<Flex>(&fixture_root().join("tiny_hybrid"));
    let refused = |prompts: &[Vec<u32>], sampling: Sampling| {
        Generation::start(&model, prompts, sampling, &device).unwrap_err()
    };
    let greedy = Sampling::GREEDY;
    assert_eq!(refused(&[], greedy), GenerateError::NoPrompt);
    assert_eq!(
        refused(&[vec![1], vec![]], greedy),
        GenerateError::EmptyPrompt
    );
    let outside = GenerateError::OutsideVocabulary { id: 96, vocab: 96 };
    assert_eq!(refused(&[vec![95], vec![0, 96]], greedy), outside);
    let error = refused(
        &[vec![1]],
        Sampling {
            top_p: Some(0.0),
            ..greedy
        },
    );
    assert_eq!(error, GenerateError::Sampling(SamplingError::TopP(0.0)));
}
