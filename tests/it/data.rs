//! Batches on a token file: positions, windows, and data that is too short.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use burn::backend::NdArray;
use burn::data::dataloader::DataLoader;
use burn_nvfp4_models::data::{
    BatchShape, Corpus, DataError, Split, TokenBatch, TokenFile, Tokenizer, TrainBatches,
    ValidationBatches,
};

fn tokens(dir: &Path, bytes: usize) -> Arc<TokenFile> {
    let path = dir.join("text");
    let text: String = (0..bytes)
        .map(|i| char::from(b'a' + u8::try_from(i % 23).unwrap()))
        .collect();
    std::fs::write(&path, text).unwrap();
    let corpus = Corpus::at(&path).unwrap();
    Arc::new(TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir).unwrap())
}

fn shape(sequences: usize, length: usize, accumulate: usize) -> BatchShape {
    let one = |value| NonZeroUsize::new(value).unwrap();
    BatchShape {
        sequences: one(sequences),
        length: one(length),
        accumulate: one(accumulate),
    }
}

fn ids(batch: &TokenBatch<NdArray>) -> (Vec<i64>, Vec<i64>) {
    let host = |tensor: &burn::tensor::Tensor<NdArray, 2, burn::tensor::Int>| {
        tensor.to_data().iter::<i64>().collect()
    };
    (host(&batch.inputs), host(&batch.targets))
}

#[test]
fn a_loader_that_starts_at_a_step_yields_what_the_whole_one_yields_there() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path(), 3000);
    let loader = |step| {
        TrainBatches::<NdArray>::new(tokens.clone(), shape(3, 16, 2), 5, step, Default::default())
            .unwrap()
    };
    // 178 windows, 6 per step: forty steps pass an epoch's end.
    let whole: Vec<_> = loader(0).iter().take(80).map(|batch| ids(&batch)).collect();
    for step in [1, 17, 30] {
        let rest: Vec<_> = loader(step)
            .iter()
            .take(10)
            .map(|batch| ids(&batch))
            .collect();
        let first = usize::try_from(step).unwrap() * 2;
        assert_eq!(rest, whole[first..first + 10], "from step {step}");
    }
    assert_eq!(ids(&loader(0).at(17, 1)), whole[35]);
}

#[test]
fn micro_batches_and_larger_batches_see_the_same_windows() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path(), 3000);
    let loader = |shape| {
        TrainBatches::<NdArray>::new(tokens.clone(), shape, 5, 0, Default::default()).unwrap()
    };
    let (two, one) = (loader(shape(2, 16, 2)), loader(shape(4, 16, 1)));
    for step in 0..5 {
        let halves = [ids(&two.at(step, 0)).0, ids(&two.at(step, 1)).0].concat();
        assert_eq!(halves, ids(&one.at(step, 0)).0);
    }
}

#[test]
fn targets_are_the_next_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path(), 3000);
    let device = Default::default();
    let train =
        TrainBatches::<NdArray>::new(tokens.clone(), shape(4, 16, 1), 5, 0, device).unwrap();
    let windows = NonZeroUsize::new(100).unwrap();
    let valid = ValidationBatches::<NdArray>::new(tokens.clone(), shape(4, 16, 1), windows, device)
        .unwrap();
    // 150 validation bytes and the separator: nine windows of 16.
    assert_eq!(valid.windows(), 9);
    let batches: Vec<_> = valid
        .iter()
        .chain(std::iter::once(train.at(0, 0)))
        .collect();
    assert_eq!(
        batches
            .iter()
            .map(|batch| batch.inputs.dims()[0])
            .collect::<Vec<_>>(),
        [4, 4, 1, 4]
    );
    for batch in batches {
        let (inputs, targets) = ids(&batch);
        for (inputs, targets) in inputs.chunks(16).zip(targets.chunks(16)) {
            assert_eq!(inputs[1..], targets[..15]);
        }
    }
    let flat: Vec<i64> = valid.iter().flat_map(|batch| ids(&batch).1).collect();
    assert_eq!(
        valid
            .targets()
            .unwrap()
            .concat()
            .into_iter()
            .map(i64::from)
            .collect::<Vec<_>>(),
        flat
    );
}

#[test]
fn data_shorter_than_one_sequence_is_refused_with_both_lengths() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path(), 1000);
    let device = Default::default();
    let error =
        TrainBatches::<NdArray>::new(tokens.clone(), shape(1, 960, 1), 0, 0, device).unwrap_err();
    let needed = 961;
    assert!(
        matches!(error, DataError::TooShort { split: Split::Training, tokens: 951, needed: n, .. }
            if n == needed),
        "{error}"
    );
    let error =
        ValidationBatches::<NdArray>::new(tokens, shape(1, 64, 1), NonZeroUsize::MIN, device)
            .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the validation part has 51 tokens, one sequence needs 65")
    );
}
