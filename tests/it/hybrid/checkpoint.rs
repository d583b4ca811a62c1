//! Checkpoints: what is written can be read, and what is damaged is refused with all reasons.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::backend::NdArray;
use burn_nvfp4_models::checkpoint::hf::{SaveOptions, load_hf, save_hf};
use burn_nvfp4_models::checkpoint::{CheckpointError, Problem};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::config::hf::StoredFloat;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};
use tempfile::TempDir;

use super::support::{fixture_root, fixtures};

type B = NdArray<f32>;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const F32: SaveOptions = SaveOptions {
    stored: StoredFloat::F32,
    max_shard_bytes: None,
};

/// Owned tensors of a file: dtype, shape, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read_tensors(dir: &Path) -> Tensors {
    let mut tensors = Tensors::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            let bytes = fs::read(path).unwrap();
            for (key, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let owned = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                assert!(tensors.insert(key, owned).is_none());
            }
        }
    }
    tensors
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(key, (dtype, shape, bytes))| {
        (
            key.clone(),
            TensorView::new(*dtype, shape.clone(), bytes).unwrap(),
        )
    });
    fs::write(path, serialize(views, None).unwrap()).unwrap();
}

/// A copy of the fixture `name`.
fn copy(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture_root().join(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::write(
            dir.path().join(path.file_name().unwrap()),
            fs::read(path).unwrap(),
        )
        .unwrap();
    }
    dir
}

fn problems(dir: &Path) -> Vec<Problem> {
    match load_hf::<B>(dir, &Default::default()) {
        Err(CheckpointError::Rejected { problems, .. }) => problems,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("{} was accepted", dir.display()),
    }
}

#[test]
fn writing_what_was_read_gives_the_same_tensors() {
    for dir in fixtures() {
        let (config, model) = load_hf::<B>(&dir, &Default::default()).unwrap();
        let original = read_tensors(&dir);
        for max_shard_bytes in [None, Some(20_000), Some(1)] {
            let bf16 = original.values().all(|(dtype, ..)| *dtype == Dtype::BF16);
            let stored = if bf16 {
                StoredFloat::Bf16
            } else {
                StoredFloat::F32
            };
            let out = tempfile::tempdir().unwrap();
            save_hf(
                &model,
                &config,
                out.path(),
                SaveOptions {
                    stored,
                    max_shard_bytes,
                },
            )
            .unwrap();
            let written = read_tensors(out.path());
            assert!(written.keys().eq(original.keys()), "{}", dir.display());
            for (key, (dtype, shape, bytes)) in &original {
                // What becomes an exponent or a time step stays in f32: the same numbers, wider.
                let widens = ["A_log", "D", "dt_bias"]
                    .iter()
                    .any(|name| key.ends_with(name));
                let expected = if *dtype == Dtype::BF16 && widens {
                    let wide = bytes.chunks(2).flat_map(|half| [0, 0, half[0], half[1]]);
                    (Dtype::F32, shape.clone(), wide.collect())
                } else {
                    (*dtype, shape.clone(), bytes.clone())
                };
                assert!(written[key] == expected, "{key} of {}", dir.display());
            }
            assert_eq!(out.path().join(INDEX).exists(), max_shard_bytes.is_some());
            let (again, _) = load_hf::<B>(out.path(), &Default::default()).unwrap();
            assert_eq!(again, config);
        }
    }
}

#[test]
fn a_fresh_model_survives_a_round_trip() {
    let config = HybridConfig::preset("tiny-1m", 64).unwrap();
    let model = config.init::<B>(&Default::default(), 9);
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save_hf(&model, &config, first.path(), F32).unwrap();
    let (_, loaded) = load_hf::<B>(first.path(), &Default::default()).unwrap();
    save_hf(&loaded, &config, second.path(), F32).unwrap();
    let bytes = |dir: &TempDir| fs::read(dir.path().join(SINGLE)).unwrap();
    assert_eq!(bytes(&first), bytes(&second));
}

#[test]
fn saving_does_not_mix_with_another_checkpoint() {
    let config = HybridConfig::preset("tiny-1m", 64).unwrap();
    let model = config.init::<B>(&Default::default(), 9);
    let dir = tempfile::tempdir().unwrap();
    save_hf(&model, &config, dir.path(), F32).unwrap();
    let sharded = SaveOptions {
        max_shard_bytes: Some(100_000),
        ..F32
    };
    let error = save_hf(&model, &config, dir.path(), sharded).unwrap_err();
    assert!(
        error.to_string().contains("already holds a checkpoint"),
        "{error}"
    );
}

#[test]
fn both_prefixes_all_float_types_and_extra_heads_are_read() {
    let dir = copy("mlp_only");
    let (_, original) = load_hf::<B>(dir.path(), &Default::default()).unwrap();
    let path = dir.path().join(SINGLE);
    let mut renamed = Tensors::new();
    for (key, tensor) in read_tensors(dir.path()) {
        renamed.insert(key.replace("backbone.", "model."), tensor);
    }
    renamed.insert(
        "mtp.layers.0.weight".into(),
        (Dtype::F32, vec![1], vec![0; 4]),
    );
    write_tensors(&path, &renamed);
    let (config, model) = load_hf::<B>(dir.path(), &Default::default()).unwrap();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save_hf(&original, &config, a.path(), F32).unwrap();
    save_hf(&model, &config, b.path(), F32).unwrap();
    assert_eq!(read_tensors(a.path()), read_tensors(b.path()));

    // One f16 number of every exponent; f32 must hold exactly the same.
    let bits: Vec<u16> = (0..32)
        .map(|exponent| (exponent << 10) | 5)
        .take(31)
        .collect();
    let (dtype, shape, bytes) = renamed.get_mut("model.norm_f.weight").unwrap();
    *dtype = Dtype::F16;
    assert_eq!(*shape, [32]);
    *bytes = bits
        .iter()
        .chain([&0])
        .flat_map(|b| b.to_le_bytes())
        .collect();
    write_tensors(&path, &renamed);
    let (_, model) = load_hf::<B>(dir.path(), &Default::default()).unwrap();
    let values = model
        .norm_f
        .weight
        .val()
        .into_data()
        .to_vec::<f32>()
        .unwrap();
    let want: Vec<f32> = bits
        .iter()
        .map(|&b| half::f16::from_bits(b).to_f32())
        .collect();
    assert_eq!(values[..31], want);
}

#[test]
fn all_problems_are_listed_at_once() {
    let dir = copy("mlp_only");
    let mut tensors = read_tensors(dir.path());
    tensors.remove("backbone.layers.0.norm.weight").unwrap();
    tensors.remove("lm_head.weight").unwrap();
    tensors.insert(
        "backbone.layers.7.norm.weight".into(),
        (Dtype::F32, vec![1], vec![0; 4]),
    );
    let up = tensors
        .get_mut("backbone.layers.1.mixer.up_proj.weight")
        .unwrap();
    up.1.reverse();
    let down = tensors
        .get_mut("backbone.layers.1.mixer.down_proj.weight")
        .unwrap();
    down.0 = Dtype::I32;
    let twice = tensors["backbone.norm_f.weight"].clone();
    tensors.insert("model.norm_f.weight".into(), twice);
    write_tensors(&dir.path().join(SINGLE), &tensors);

    let file = SINGLE.to_owned();
    let expected = [
        Problem::Duplicate {
            key: "backbone.norm_f.weight".into(),
            first: file.clone(),
            second: file.clone(),
        },
        Problem::Missing {
            key: "backbone.layers.0.norm.weight".into(),
        },
        Problem::Misshapen {
            key: "backbone.layers.1.mixer.up_proj.weight".into(),
            found: vec![32, 72],
            expected: vec![72, 32],
        },
        Problem::UnsupportedDtype {
            key: "backbone.layers.1.mixer.down_proj.weight".into(),
            dtype: "I32".into(),
        },
        Problem::Missing {
            key: "lm_head.weight".into(),
        },
        Problem::Unexpected {
            key: "backbone.layers.7.norm.weight".into(),
            file,
        },
    ];
    let found = problems(dir.path());
    assert_eq!(found, expected);
    let text = load_hf::<B>(dir.path(), &Default::default())
        .unwrap_err()
        .to_string();
    assert_eq!(text.lines().count(), 1 + expected.len(), "{text}");
    assert!(text.contains("\n  lm_head.weight is missing"), "{text}");
}

#[test]
fn truncated_files_are_refused() {
    let dir = copy("mlp_only");
    let path = dir.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    for len in [0, 1, 7, 8, 9, 100, 2000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        let found = problems(dir.path());
        assert!(
            matches!(&found[..], [Problem::UnreadableFile { .. }]),
            "{len}: {found:?}"
        );
    }
    let longer = [whole.as_slice(), &[0]].concat();
    fs::write(&path, longer).unwrap();
    assert!(matches!(
        problems(dir.path())[..],
        [Problem::UnreadableFile { .. }]
    ));
}

#[test]
fn flipped_header_bits_are_refused_or_harmless_but_never_a_panic() {
    let dir = copy("mlp_only");
    let path = dir.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    let header = 8 + usize::try_from(u64::from_le_bytes(whole[..8].try_into().unwrap())).unwrap();
    let (_, original) = load_hf::<B>(dir.path(), &Default::default()).unwrap();
    let original = original.norm_f.weight.val().into_data();
    let (mut refused, mut accepted) = (0, 0);
    for byte in 0..header {
        // One bit per byte of the text, all bits of the length.
        for bit in if byte < 8 {
            0..8
        } else {
            byte % 8..byte % 8 + 1
        } {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1 << bit;
            fs::write(&path, damaged).unwrap();
            match load_hf::<B>(dir.path(), &Default::default()) {
                Err(CheckpointError::Rejected { problems, .. }) => {
                    assert!(!problems.is_empty());
                    refused += 1;
                }
                Err(other) => panic!("{byte}.{bit}: {other}"),
                // Only in the free text beside the tensors, or in white space.
                Ok((_, model)) => {
                    assert!(byte >= 8, "a wrong header length was accepted");
                    assert_eq!(model.norm_f.weight.val().into_data(), original);
                    accepted += 1;
                }
            }
        }
    }
    assert!(
        refused > 20 * accepted,
        "{refused} refused, {accepted} accepted"
    );
}

#[test]
fn shards_that_are_missing_damaged_or_elsewhere_are_all_named() {
    let dir = copy("bf16_sharded");
    let shard = |n: usize| format!("model-{n:05}-of-00006.safetensors");
    fs::remove_file(dir.path().join(shard(2))).unwrap();
    fs::write(dir.path().join(shard(4)), b"garbage").unwrap();
    let index = fs::read_to_string(dir.path().join(INDEX)).unwrap();
    fs::write(
        dir.path().join(INDEX),
        index.replace(&shard(6), "../secret.safetensors"),
    )
    .unwrap();
    let files: Vec<_> = problems(dir.path())
        .into_iter()
        .map(|problem| match problem {
            Problem::UnreadableFile { file, .. } => file,
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(files, ["../secret.safetensors".into(), shard(2), shard(4)]);

    fs::write(dir.path().join(INDEX), "{\"weight_map\": 3}").unwrap();
    assert!(matches!(
        problems(dir.path())[..],
        [Problem::UnreadableFile { .. }]
    ));
}

#[test]
fn folders_without_a_checkpoint_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let load = || {
        load_hf::<B>(dir.path(), &Default::default())
            .map(|_| ())
            .unwrap_err()
    };
    assert!(load().to_string().contains("cannot read"), "{}", load());
    let config = HybridConfig::preset("tiny-1m", 64)
        .unwrap()
        .to_hf_json(StoredFloat::F32);
    fs::write(dir.path().join("config.json"), &config).unwrap();
    assert!(load().to_string().contains("index.json"), "{}", load());
    fs::write(
        dir.path().join("config.json"),
        config.replace("relu2", "gelu"),
    )
    .unwrap();
    assert!(
        matches!(load(), CheckpointError::Config { .. }),
        "{}",
        load()
    );
}
