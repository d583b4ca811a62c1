//! Weights in 4 bits, from the directory that holds them to the linear that multiplies them.

use std::fs;
use std::path::Path;

use burn::backend::{Flex, NdArray};
use burn_nvfp4::Nvfp4Engine;
use burn_nvfp4::export::ServingFormat;
use burn_nvfp4::recipe::Recipe;
use burn_nvfp4_models::checkpoint::hf::load_hf_packed;
use burn_nvfp4_models::config::hf::StoredFloat;
use burn_nvfp4_models::serving::{
    Force, Inspected, QuantizeOptions, Selection, ServingError, WeightRule, dequantize_directory,
    inspect_directory, quantize_directory,
};
use tests::serving::{recipes, with_and_without_packed};

use crate::device::exclusive;
use crate::hybrid::support::fixture_root;

fn check<B: Nvfp4Engine>(recipe: Recipe, name: &str) {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let (on_the_fly, from_files) = with_and_without_packed::<B>(recipe);
    assert!(on_the_fly.iter().any(|&y| y != 0.0));
    for y in from_files {
        assert_eq!(bits(&y), bits(&on_the_fly), "{name}");
    }
}

#[test]
fn a_linear_on_packed_weights_has_the_bits_of_one_that_quantizes() {
    let _turn = exclusive();
    for (recipe, name) in recipes() {
        check::<NdArray>(recipe, name);
        check::<Flex>(recipe, name);
    }
}

/// The fixture `mlp_only` in 4 bits.
fn quantized(to: &Path, format: ServingFormat) {
    let from = fixture_root().join("mlp_only");
    quantize(&from, to, format, Force::Refuse).unwrap();
}

fn quantize(
    from: &Path,
    to: &Path,
    format: ServingFormat,
    force: Force,
) -> Result<(), ServingError> {
    let options = QuantizeOptions {
        format,
        rule: WeightRule::TransformerEngine,
        selection: Selection::excluding(&["lm_head", "*embed*"], &[]).unwrap(),
        force,
    };
    quantize_directory(from, to, &options, &mut |_| {}).map(|_| ())
}

fn dequantize(from: &Path, to: &Path) -> Result<(), ServingError> {
    dequantize_directory(from, to, StoredFloat::F32, Force::Refuse, &mut |_| {})
}

/// Writing removed `<output>.part` before it began and `<output>.old.part` when it replaced
/// something: an input, or whatever had such a name.
#[test]
fn an_input_or_anything_else_in_the_way_of_an_output_is_refused_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let original = fixture_root().join("mlp_only");
    quantized(&at("four.part"), ServingFormat::Modelopt);
    quantized(&at("other"), ServingFormat::Modelopt);
    for name in ["model.part", "other.old.part"] {
        fs::create_dir(at(name)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(original.join(file), at(name).join(file)).unwrap();
        }
    }
    let files = || {
        let folders = ["model.part", "other.old.part", "four.part", "other"];
        folders.map(|name| fs::read(at(name).join("model.safetensors")).unwrap())
    };
    let before = files();
    let format = ServingFormat::Modelopt;
    for (result, beside) in [
        (
            quantize(&at("model.part"), &at("model"), format, Force::Refuse),
            "model.part",
        ),
        (
            quantize(&at("model.part"), &at("model/"), format, Force::Refuse),
            "model.part",
        ),
        (
            quantize(&at("other.old.part"), &at("other"), format, Force::Replace),
            "other.old.part",
        ),
        (dequantize(&at("four.part"), &at("four")), "four.part"),
    ] {
        let error = result.unwrap_err();
        assert!(matches!(error, ServingError::InTheWay { .. }), "{error}");
        let (message, beside) = (error.to_string(), at(beside).display().to_string());
        assert!(message.starts_with(&beside), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    assert!(files() == before);
    assert!(!at("model").exists() && !at("four").exists());
}

/// What is written first was put inside of `out/`, which then could not be renamed.
#[test]
fn a_slash_at_the_end_of_an_output_is_not_part_of_its_name() {
    let dir = tempfile::tempdir().unwrap();
    quantized(&dir.path().join("four/"), ServingFormat::Modelopt);
    dequantize(&dir.path().join("four/"), &dir.path().join("floats/")).unwrap();
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["floats", "four"]);
    assert!(dir.path().join("floats/config.json").is_file());
}

#[test]
fn an_output_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"no folder").unwrap();
    let output = file.join("out");
    let original = fixture_root().join("mlp_only");
    let result = quantize(&original, &output, ServingFormat::Modelopt, Force::Refuse);
    let message = result.unwrap_err().to_string();
    let start = format!("{}: cannot write: ", output.display());
    assert!(message.starts_with(&start), "{message}");
}

#[test]
fn flipped_header_bits_of_a_quantized_model_are_refused_or_harmless_but_never_a_panic() {
    for format in [ServingFormat::Modelopt, ServingFormat::CompressedTensors] {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        quantized(&model, format);
        let path = model.join("model.safetensors");
        let whole = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap());
        let header = 8 + usize::try_from(length).unwrap();
        let (mut refused, mut accepted) = (0, 0);
        for byte in 0..header {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1 << (byte % 8);
            fs::write(&path, damaged).unwrap();
            let loaded = load_hf_packed::<NdArray>(&model, &Default::default());
            let inspected = inspect_directory(&model, &Inspected::Alone, &mut |_| {});
            match (loaded, inspected) {
                (Err(_), _) => refused += 1,
                // In the note of amaxes, in other free text, or in white space.
                (Ok(_), Ok(())) => accepted += 1,
                (Ok(_), Err(error)) => panic!("{byte}: a model, but {error}"),
            }
        }
        assert!(
            refused > 2 * accepted,
            "{refused} refused, {accepted} accepted"
        );
    }
}

#[test]
fn a_flipped_bit_of_a_configuration_is_refused_or_harmless_but_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    quantized(&model, ServingFormat::Modelopt);
    let path = model.join("config.json");
    let whole = fs::read(&path).unwrap();
    for byte in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[byte] ^= 1 << (byte % 7);
        fs::write(&path, damaged).unwrap();
        // Whatever it says now, codes are never taken for other numbers.
        if let Ok(loaded) = load_hf_packed::<NdArray>(&model, &Default::default()) {
            assert!(!loaded.packed.is_empty(), "byte {byte}");
        }
    }
}
