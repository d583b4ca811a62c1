//! What `cargo xtask interop` asks of the library that the command does not offer.
//!
//! ```text
//! interop logits DIR IDS OUT            logits of the i64 tensor `ids` [batch, seq] in IDS
//! interop resave IN OUT f32|bf16 BYTES  reads a checkpoint and writes it; BYTES 0: in one file
//! interop init PRESET OUT               a fresh model with a vocabulary of 256
//! interop judge IN OUT                  answers in texts: a line of IN has a rule, a text and the
//!                                       right answer, one of OUT what each reading found
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use burn::backend::NdArray;
use burn::tensor::{Int, Tensor, TensorData};
use burn_nvfp4_models::checkpoint::hf::{SaveOptions, load_hf, save_hf};
use burn_nvfp4_models::config::HybridConfig;
use burn_nvfp4_models::config::hf::StoredFloat;
use burn_nvfp4_models::eval::answers::AnswerRule;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde::Deserialize;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["logits", dir, ids, out] => logits(Path::new(dir), Path::new(ids), Path::new(out)),
        ["resave", from, to, stored, bytes] => {
            let stored = match *stored {
                "f32" => StoredFloat::F32,
                "bf16" => StoredFloat::Bf16,
                other => return Err(format!("{other}: f32 or bf16 expected").into()),
            };
            let options = SaveOptions {
                stored,
                max_shard_bytes: Some(bytes.parse()?).filter(|&bytes| bytes > 0),
            };
            let (config, model) = load_hf::<NdArray>(Path::new(from), &Default::default())?;
            Ok(save_hf(&model, &config, Path::new(to), options)?)
        }
        ["init", preset, to] => {
            let config = HybridConfig::preset(preset, 256)?;
            let model = config.init::<NdArray>(&Default::default(), 1);
            let options = SaveOptions {
                stored: StoredFloat::F32,
                max_shard_bytes: None,
            };
            Ok(save_hf(&model, &config, Path::new(to), options)?)
        }
        ["judge", from, to] => judge(Path::new(from), Path::new(to)),
        _ => Err("usage: interop logits|resave|init|judge ..".into()),
    }
}

fn logits(dir: &Path, ids: &Path, out: &Path) -> Result<(), Box<dyn Error>> {
    let (_, model) = load_hf::<NdArray>(dir, &Default::default())?;
    let bytes = std::fs::read(ids)?;
    let ids = SafeTensors::deserialize(&bytes)?.tensor("ids")?;
    let shape = [ids.shape()[0], ids.shape()[1]];
    let ids: Vec<i64> = ids
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|bytes| i64::from_le_bytes(*bytes))
        .collect();
    let data = TensorData::new(ids, shape);
    let ids = Tensor::<NdArray, 2, Int>::from_data(data, &Default::default());
    let logits = model.forward(ids);
    let shape = logits.dims().to_vec();
    let values: Vec<f32> = logits.into_data().iter::<f32>().collect();
    let values: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape, &values)?;
    let about: Option<HashMap<String, String>> = None;
    Ok(serialize_to_file([("logits", view)], about, out)?)
}

/// A text to find an answer in.
#[derive(Deserialize)]
struct Case {
    rule: String,
    text: String,
    gold: String,
}

fn judge(from: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let mut out = String::new();
    for line in std::fs::read_to_string(from)?.lines() {
        let case: Case = serde_json::from_str(line)?;
        let rule = match case.rule.as_str() {
            "gsm8k" => AnswerRule::Gsm8k,
            "mmlu_pro" => AnswerRule::MmluPro,
            "math" => AnswerRule::Math,
            other => return Err(format!("{other}: gsm8k, mmlu_pro or math expected").into()),
        };
        let verdicts = rule
            .judge(&case.text, &case.gold)
            .into_iter()
            .map(|verdict| {
                let found = json!({"answer": verdict.answer, "correct": verdict.correct});
                (verdict.measure.name().to_owned(), found)
            });
        let verdicts: serde_json::Map<_, _> = verdicts.collect();
        out += &format!("{}\n", serde_json::Value::Object(verdicts));
    }
    Ok(std::fs::write(to, out)?)
}
