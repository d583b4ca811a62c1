//! Several sources in one run: folders of shards, blends, phases, epochs, and resuming.
//!
//! Every source has an alphabet of its own and numbers its sequences, so that a batch tells where
//! it came from.

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use burn::backend::NdArray;
use burn::data::dataloader::DataLoader;
use burn_nvfp4_models::data::dataset::{HeldOut, Reading};
use burn_nvfp4_models::data::documents::{Inputs, Layout, TextDocuments};
use burn_nvfp4_models::data::tokenize::{Existing, Job, tokenize};
use burn_nvfp4_models::data::{
    BatchShape, Blend, Curriculum, DataError, Dataset, Split, TokenBatch, Tokenizer, TrainBatches,
    ValidationBatches, Weight,
};

/// Tokens of a sequence, and of a document with its separator.
const LENGTH: usize = 16;

/// Tokenises documents of fifteen bytes that say their number in letters from `first` on.
fn source(folder: &Path, name: &str, first: u8, documents: usize) -> PathBuf {
    let number = |index: usize| {
        let digit =
            |place: u32| char::from(first + u8::try_from(index / 4usize.pow(place) % 4).unwrap());
        (0..15).map(digit).collect::<String>()
    };
    let text: Vec<_> = (0..documents).map(number).collect();
    let path = folder.join(format!("{name}.txt"));
    std::fs::write(&path, text.join("\n\n")).unwrap();
    let out = folder.join(name);
    let job = Job {
        inputs: &Inputs::find(&[path]).unwrap(),
        layout: &Layout {
            text: TextDocuments::BlankLine,
            field: "text".to_owned(),
        },
        tokenizer: &Tokenizer::Bytes,
        folder: &out,
        // Shards end anywhere between sequences' starts.
        shard_tokens: NonZeroU64::new(100).unwrap(),
        threads: NonZeroUsize::MIN,
        existing: Existing::Keep,
    };
    let report = tokenize(job, &mut |_| {}).unwrap();
    assert_eq!(report.manifest.documents, documents as u64);
    out
}

fn blend(weights: &[f64]) -> Blend {
    let named = weights.iter().map(|&weight| Weight {
        source: "source".to_owned(),
        weight,
    });
    Blend::new(&named.collect::<Vec<_>>()).unwrap()
}

fn shape() -> BatchShape {
    let count = |count| NonZeroUsize::new(count).unwrap();
    BatchShape {
        sequences: count(5),
        length: count(LENGTH),
        accumulate: count(2),
    }
}

/// Three sources, and a run on them.
fn dataset(folder: &Path, seed: u64) -> Dataset {
    for (name, first, documents) in [("web", b'a', 1000), ("wiki", b'e', 101), ("code", b'i', 61)] {
        source(folder, name, first, documents);
    }
    open(folder, seed)
}

/// 300 steps of ten sequences: phases of 70, 20 and 10 % of the run, as in the published one.
fn open(folder: &Path, seed: u64) -> Dataset {
    let paths = ["web", "wiki", "code"].map(|name| folder.join(name));
    let phases = [
        (blend(&[7.0, 2.0, 1.0]), 2100),
        (blend(&[0.5, 0.3, 0.2]), 2700),
        (blend(&[0.0, 1.0, 1.0]), 3000),
    ];
    let reading = Reading {
        curriculum: Curriculum::new(3, phases),
        sequences: 3000,
        length: NonZeroUsize::new(LENGTH).unwrap(),
        seed,
    };
    let held_out = HeldOut::Share(0.05);
    Dataset::open(&paths, Some(&held_out), reading, &Tokenizer::Bytes, folder).unwrap()
}

fn loader(data: &Dataset, step: u64) -> TrainBatches<NdArray> {
    TrainBatches::of(data.mixture().clone(), shape(), step, Default::default())
}

/// The sequences of a micro-batch.
fn sequences(batch: &TokenBatch<NdArray>) -> Vec<Vec<i64>> {
    let ids: Vec<i64> = batch.inputs.to_data().iter::<i64>().collect();
    ids.chunks(LENGTH).map(<[i64]>::to_vec).collect()
}

/// Which source a sequence is from, by its letters.
fn origin(sequence: &[i64]) -> usize {
    let letter = *sequence.iter().max().unwrap();
    usize::try_from((letter - i64::from(b'a')) / 4).unwrap()
}

#[test]
fn every_phase_keeps_its_blend_and_changes_with_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 5);
    let loader = loader(&data, 0);
    let (mut counts, mut last) = ([0usize; 3], [0; 3]);
    for step in 0..300u64 {
        let (weights, since) = match step {
            0..210 => ([0.7, 0.2, 0.1], 0),
            210..270 => ([0.5, 0.3, 0.2], 210),
            _ => ([0.0, 0.5, 0.5], 270),
        };
        if step == since {
            last = counts;
        }
        for micro in 0..2 {
            for sequence in sequences(&loader.at(step, micro)) {
                counts[origin(&sequence)] += 1;
            }
        }
        for source in 0..3 {
            let ideal = (step + 1 - since) as f64 * 10.0 * weights[source];
            let off = (counts[source] - last[source]) as f64 - ideal;
            assert!(
                off.abs() <= 1.0,
                "step {step}, source {source}: off by {off}"
            );
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), 3000);
    let epochs = data.mixture().epochs(0..3000);
    for (source, epochs) in epochs.iter().enumerate() {
        let tokens = data.mixture().sources().nth(source).unwrap().tokens();
        let read = counts[source] as f64 / ((tokens - 1) / LENGTH as u64) as f64;
        assert!(
            (epochs - read).abs() < 1e-9,
            "source {source}: {epochs}, {read} read"
        );
    }
}

#[test]
fn an_epoch_of_a_source_holds_each_of_its_sequences_once_in_an_order_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 5);
    let loader = loader(&data, 0);
    let mut read: BTreeMap<usize, Vec<Vec<i64>>> = BTreeMap::new();
    for step in 0..300 {
        for micro in 0..2 {
            for sequence in sequences(&loader.at(step, micro)) {
                read.entry(origin(&sequence)).or_default().push(sequence);
            }
        }
    }
    for (source, read) in read {
        let tokens = data.mixture().sources().nth(source).unwrap().tokens();
        // The last token of a source is a target alone.
        let windows = usize::try_from((tokens - 1) / LENGTH as u64).unwrap();
        let epochs: Vec<_> = read.chunks(windows).collect();
        assert!(
            epochs.len() > 1,
            "source {source}: {} of {windows}",
            read.len()
        );
        for epoch in &epochs {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(
                sorted.len(),
                epoch.len(),
                "source {source}: a sequence came twice"
            );
        }
        let (first, second) = (epochs[0], epochs[1]);
        let both = first.len().min(second.len());
        assert_ne!(first[..both], second[..both], "source {source}");
    }
}

#[test]
fn a_run_that_goes_on_at_any_step_reads_what_the_whole_one_reads_there() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 5);
    let ids = |batch: &TokenBatch<NdArray>| {
        let list = |tensor: &burn::tensor::Tensor<NdArray, 2, burn::tensor::Int>| {
            tensor.to_data().iter::<i64>().collect::<Vec<_>>()
        };
        (list(&batch.inputs), list(&batch.targets))
    };
    let whole: Vec<_> = loader(&data, 0)
        .iter()
        .take(600)
        .map(|batch| ids(&batch))
        .collect();
    // The folders are opened anew, as by another process.
    let again = open(folder.path(), 5);
    for step in [1, 100, 209, 210, 211, 269, 270, 299] {
        let rest: Vec<_> = loader(&again, step)
            .iter()
            .take(4)
            .map(|batch| ids(&batch))
            .collect();
        let first = usize::try_from(step).unwrap() * 2;
        let end = whole.len().min(first + 4);
        assert_eq!(rest[..end - first], whole[first..end], "from step {step}");
    }
    let other = open(folder.path(), 6);
    assert_ne!(ids(&loader(&other, 0).at(0, 0)), whole[0]);
    assert_eq!(other.fingerprint(), data.fingerprint());
}

#[test]
fn what_is_held_out_is_the_end_of_each_source_from_a_document_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 5);
    // Documents of 16 tokens with their separator, the last twentieth of each source.
    let expected = [(950, 50), (96, 5), (58, 3)];
    let streams = data.validation(NonZeroUsize::new(40).unwrap());
    for (index, (stream, _)) in streams.iter().enumerate() {
        let (train, valid) = expected[index];
        assert_eq!(stream.tokens(), valid * LENGTH as u64, "source {index}");
        let tokens = data.mixture().sources().nth(index).unwrap().tokens();
        assert_eq!(tokens, train * LENGTH as u64, "source {index}");
        let mut ids = [0; LENGTH];
        stream.read(0, &mut ids).unwrap();
        assert_eq!(ids[LENGTH - 1], 0, "a document and its separator");
        assert!(ids[..LENGTH - 1].iter().all(|&id| id > 0));
    }
    // Windows in the proportions of the run: 1770, 750 and 480 of 3000 sequences, 40 in all.
    let windows: Vec<_> = streams.iter().map(|(_, windows)| *windows).collect();
    assert_eq!(windows, [24, 10, 6]);
    let valid = ValidationBatches::<NdArray>::of(streams, shape(), Default::default()).unwrap();
    // The small sources have fewer than their share: each window needs a target behind it.
    assert_eq!(valid.windows(), 24 + 4 + 2);
    assert_eq!(valid.targets().unwrap().len(), 30);
    assert_eq!(data.tokens(Split::Validation), 58 * LENGTH as u64);
}

#[test]
fn text_and_shards_can_be_blended_and_misfits_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let shards = source(folder.path(), "web", b'a', 100);
    let text = folder.path().join("raw.txt");
    std::fs::write(&text, "wxyz".repeat(1000)).unwrap();
    let reading = || Reading {
        curriculum: Curriculum::new(2, [(blend(&[1.0, 1.0]), 100)]),
        sequences: 100,
        length: NonZeroUsize::new(LENGTH).unwrap(),
        seed: 1,
    };
    let paths = [shards.clone(), text];
    let open = |held_out: Option<&HeldOut>, tokenizer: &Tokenizer| {
        Dataset::open(&paths, held_out, reading(), tokenizer, folder.path())
    };
    let data = open(Some(&HeldOut::Share(0.1)), &Tokenizer::Bytes).unwrap();
    let letters: Vec<_> = (0..10)
        .map(|sequence| data.mixture().place(sequence).source)
        .collect();
    assert_eq!(letters.iter().filter(|&&source| source == 0).count(), 5);
    let folder_of_its_own = HeldOut::Folder(shards.clone());
    let data = open(Some(&folder_of_its_own), &Tokenizer::Bytes).unwrap();
    assert_eq!(data.tokens(Split::Validation), 1600);
    let error = open(None, &Tokenizer::Bytes).unwrap_err();
    assert!(matches!(error, DataError::NothingHeldOut { .. }), "{error}");
    let data = open(Some(&HeldOut::Share(0.001)), &Tokenizer::Bytes).unwrap();
    let streams = data.validation(NonZeroUsize::MIN);
    let valid = ValidationBatches::<NdArray>::of(streams, shape(), Default::default());
    assert!(matches!(valid, Err(DataError::TooShort { tokens: 0, .. })));
    // Tokens of another tokenizer mean other texts.
    let json = folder.path().join("tokenizer.json");
    let model = r#"{"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel",
        "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"#;
    std::fs::write(&json, model).unwrap();
    let other = Tokenizer::from_file(&json).unwrap();
    let error = open(Some(&HeldOut::Share(0.1)), &other)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("made by another tokenizer (bytes) than the run's"),
        "{error}"
    );
}
