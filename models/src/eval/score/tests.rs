//! Scores against the definition: one row at a time, all logits, log-softmax in f64.

use burn::backend::{Flex, NdArray};
use burn_hybrid_ops::HybridEngine;

use super::super::encode::{Encoded, Encoder};
use super::super::question::{Choice, Item, Question};
use super::*;
use crate::config::HybridConfig;
use crate::data::Tokenizer;

const WINDOW: usize = 2500;

/// A random hybrid whose predictions differ from position to position.
fn model<B: HybridEngine>(device: &B::Device) -> HybridLm<B> {
    let mut config = HybridConfig::preset("tiny-1m", 256).unwrap();
    config.pattern = "M*-M".parse().unwrap();
    (config.d_model, config.d_ffn) = (32, 64);
    config.init_std = 0.3;
    config.init(device, 11)
}

fn rows(question: Question) -> Vec<Row> {
    let encoder = Encoder {
        tokenizer: &Tokenizer::Bytes,
        window: WINDOW,
    };
    let item = Item {
        subject: String::new(),
        id: String::new(),
        question,
    };
    match encoder.encode(&item).unwrap() {
        Encoded::Rows(rows) => rows,
        Encoded::Prompt(_) => unreachable!(),
    }
}

fn choice(context: &str, answers: &[&str]) -> Vec<Row> {
    rows(Question::Choice(Choice::after(context, answers, 0)))
}

/// The definition.
fn reference<B: HybridEngine>(model: &HybridLm<B>, row: &Row, device: &B::Device) -> Score {
    let ids: Vec<i64> = row.input().iter().map(|&id| i64::from(id)).collect();
    let ids = TensorData::new(ids, [1, row.input().len()]);
    let logits = model.forward(Tensor::from_data(ids, device));
    let [_, _, vocab] = logits.dims();
    let logits: Vec<f64> = logits.into_data().iter::<f64>().collect();
    let (mut log_likelihood, mut is_greedy) = (0.0, true);
    for (logits, &id) in logits.chunks(vocab).skip(row.first()).zip(row.targets()) {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
        log_likelihood += logits[id as usize] - max - sum.ln();
        is_greedy &= logits[id as usize] == max;
    }
    Score {
        log_likelihood,
        is_greedy,
        tokens: row.targets().len(),
    }
}

/// Checks that batches of these sizes, on one to three threads, give what the definition gives.
fn check<B: HybridEngine>(rows: &[Row], batch_tokens: &[usize]) {
    let device = B::Device::default();
    let model = model::<B>(&device);
    let rows: Vec<&Row> = rows.iter().collect();
    let expected: Vec<Score> = rows
        .iter()
        .map(|row| reference(&model, row, &device))
        .collect();
    for (&batch_tokens, threads) in batch_tokens.iter().zip([1, 2, 3]) {
        let scorer = Scorer {
            model: &model,
            device: device.clone(),
            batch_tokens,
            threads: NonZeroUsize::new(threads).unwrap(),
        };
        let mut finished = 0;
        let scores = scorer.score(&rows, &mut |count| finished += count);
        assert_eq!(finished, rows.len());
        for (index, (score, expected)) in scores.iter().zip(&expected).enumerate() {
            let error = (score.log_likelihood - expected.log_likelihood).abs();
            // Rounding of f32 logits of size 10, once per token.
            let limit = 1e-5 * expected.tokens as f64;
            assert!(
                error < limit,
                "row {index} of {batch_tokens}: off by {error:.1e}"
            );
            assert_eq!(
                (score.is_greedy, score.tokens),
                (expected.is_greedy, expected.tokens),
                "row {index} of {batch_tokens}"
            );
        }
    }
}

#[test]
fn a_row_is_scored_in_a_batch_as_it_is_alone() {
    let mut all = choice("Why?", &["because", "A", "B", "of this and that"]);
    all.extend(choice(
        "A longer question, with more in it:",
        &["yes", "no"],
    ));
    all.extend(choice(
        "",
        &["Good is this sentence.", "Sentence bad this is."],
    ));
    check::<NdArray>(&all, &[1, 40, 4096]);
    check::<Flex>(&all, &[1, 40, 4096]);
}

#[test]
fn a_shared_beginning_changes_nothing() {
    let examples = "An example of some length, and its answer. ".repeat(5);
    let questions = (0..7).flat_map(|i| {
        let question = format!("{examples}{}?", "and so on ".repeat(i % 3));
        choice(&format!("{question}{i}"), &["A", "B", "some words"])
    });
    let questions: Vec<Row> = questions.collect();
    // 215 ids are saved six times and more: shared at the first two sizes, apart at the last.
    check::<Flex>(&questions, &[300, 1000, 1 << 20]);
}

#[test]
fn long_texts_go_through_in_pieces() {
    let text: String = (0..3000_u32)
        .map(|i| char::from(b'a' + u8::try_from(i * i % 23).unwrap()))
        .collect();
    let windows = rows(Question::Text(text));
    assert_eq!(windows.len(), 2);
    check::<Flex>(&windows, &[100, 8192]);
}

#[test]
fn the_greedy_continuation_is_known_as_such() {
    let device = Default::default();
    let model = model::<Flex>(&device);
    let mut ids: Vec<u32> = "Go on".bytes().map(u32::from).collect();
    let prompt = ids.len();
    let generation = crate::generate::Generation::start(
        &model,
        &[&ids],
        crate::generate::Sampling::GREEDY,
        &device,
    );
    let written: Vec<u32> = generation.unwrap().take(5).flatten().collect();
    ids.extend(&written);
    let scorer = Scorer {
        model: &model,
        device,
        batch_tokens: 64,
        threads: NonZeroUsize::MIN,
    };
    let greedy = Row::new(ids.clone(), ids.len() - prompt);
    ids[prompt + 4] ^= 1;
    let other = Row::new(ids, 5);
    let scores = scorer.score(&[&greedy, &other], &mut |_| {});
    assert!(scores[0].is_greedy && !scores[1].is_greedy);
    assert!(scores[0].log_likelihood > scores[1].log_likelihood);
}
