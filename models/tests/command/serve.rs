//! `nvfp4 quantize`, `dequantize`, `export` and `inspect` as a user meets them.

use burn::backend::NdArray;
use burn_nvfp4_models::checkpoint::hf::{SaveOptions, save_hf};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};

use super::*;

/// A desk with a checkpoint of a small random model in `model`, in three files.
fn desk() -> Desk {
    let desk = Desk::new();
    let mut config = HybridConfig::preset("tiny-1m", 256).unwrap();
    config.pattern = "M-*-".parse().unwrap();
    (config.d_model, config.d_ffn) = (32, 64);
    let model = config.init::<NdArray>(&Default::default(), 3);
    let options = SaveOptions {
        stored: StoredFloat::Bf16,
        max_shard_bytes: Some(40_000),
    };
    save_hf(&model, &config, &desk.path("model"), options).unwrap();
    desk.write("model/tokenizer.json", b"{}");
    desk.write("model/pytorch_model.bin", b"old");
    desk
}

impl Desk {
    /// The output of a command that has to succeed.
    fn done(&self, arguments: &str) -> (String, String) {
        let output = self.command(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments}: {stderr}");
        (String::from_utf8(output.stdout).unwrap(), stderr)
    }

    /// Checks that a command fails with code 1 and one line, and leaves every file as it was.
    fn refused(&self, arguments: &str, words: &[&str]) {
        let before = self.snapshot();
        let output = self.command(arguments).output().unwrap();
        check_error(&output, 1, words);
        assert!(self.snapshot() == before, "{arguments} changed a file");
    }

    fn json(&self, name: &str) -> Value {
        json5::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    /// All tensors of a folder: dtype, shape, bytes.
    fn tensors(&self, folder: &str) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
        let mut tensors = BTreeMap::new();
        for entry in fs::read_dir(self.path(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let bytes = fs::read(path).unwrap();
                for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
                    let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                    assert!(
                        tensors.insert(name.to_owned(), tensor).is_none(),
                        "{name} twice"
                    );
                }
            }
        }
        tensors
    }
}

/// The rows of `nvfp4 inspect` by tensor, cut at two spaces or more.
fn rows(table: &str) -> BTreeMap<String, Vec<String>> {
    let cells = |line: &str| -> Vec<String> {
        let cells = line
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty());
        cells.map(str::to_owned).collect()
    };
    let rows = table.lines().skip(1).map(cells);
    rows.map(|row| (row[0].clone(), row)).collect()
}

#[test]
fn a_quantized_folder_has_what_its_loaders_want() {
    let desk = desk();
    let original = desk.tensors("model");
    for (format, codes, tensor_scale) in [
        ("modelopt", "weight", "weight_scale_2"),
        ("compressed-tensors", "weight_packed", "weight_global_scale"),
    ] {
        let out = format!("out-{format}");
        let (_, stderr) = desk.done(&format!("quantize model {out} --format {format}"));
        assert!(stderr.contains("4.5"), "{stderr}");
        let tensors = desk.tensors(&out);
        let config = desk.json(&format!("{out}/config.json"));
        let quantization = &config["quantization_config"];
        assert_eq!(quantization["quant_method"], format);
        let ignored: Vec<_> = quantization["ignore"].as_array().unwrap().iter().collect();
        for (key, (dtype, shape, bytes)) in &original {
            let module = key.strip_suffix(".weight").unwrap_or(key);
            let is_matrix = key.ends_with(".weight") && shape.len() == 2;
            let is_ignored = ignored.iter().any(|name| **name == module);
            if is_matrix && !is_ignored {
                // Every linear is in 4 bits or listed.
                let part = |suffix: &str| &tensors[&format!("{module}.{suffix}")];
                assert_eq!(part(codes).0, Dtype::U8);
                assert_eq!(part(codes).1, [shape[0], shape[1] / 2]);
                assert_eq!(part("weight_scale").0, Dtype::F8_E4M3);
                assert_eq!(part("weight_scale").1, [shape[0], shape[1] / 16]);
                assert_eq!(part(tensor_scale).0, Dtype::F32);
            } else {
                assert_eq!(
                    tensors[key],
                    (*dtype, shape.clone(), bytes.clone()),
                    "{key}"
                );
            }
        }
        for kept in ["lm_head", "backbone.embeddings"] {
            assert!(
                ignored.iter().any(|name| **name == kept),
                "{kept} in {ignored:?}"
            );
        }
        // The index names each tensor; other weights are not carried along, the tokenizer is.
        let index = desk.json(&format!("{out}/model.safetensors.index.json"));
        let named: Vec<_> = index["weight_map"].as_object().unwrap().keys().collect();
        assert!(named.into_iter().eq(tensors.keys()));
        assert!(desk.path(&format!("{out}/tokenizer.json")).exists());
        assert!(!desk.path(&format!("{out}/pytorch_model.bin")).exists());
        let has_more = desk.path(&format!("{out}/hf_quant_config.json")).exists();
        assert_eq!(has_more, format == "modelopt");
    }
}

#[test]
fn fused_projections_get_one_tensor_scale() {
    let desk = desk();
    desk.done("quantize model out");
    let tensors = desk.tensors("out");
    let scale = |name: &str| {
        let key = format!("backbone.layers.2.mixer.{name}.weight_scale_2");
        tensors[&key].2.clone()
    };
    assert_eq!(scale("q_proj"), scale("k_proj"));
    assert_eq!(scale("q_proj"), scale("v_proj"));
    assert_ne!(scale("q_proj"), scale("o_proj"));
}

#[test]
fn rules_differ_in_bits_and_excluded_modules_stay() {
    let desk = desk();
    for rule in ["transformer-engine", "four-over-six", "modelopt"] {
        desk.done(&format!("quantize model {rule} --rule {rule}"));
    }
    let key = "backbone.layers.0.mixer.in_proj.weight_scale_2";
    let scale = |rule: &str| {
        let bytes = &desk.tensors(rule)[key].2;
        f32::from_le_bytes(bytes.as_slice().try_into().unwrap())
    };
    assert_eq!(scale("transformer-engine"), scale("modelopt"));
    // Mapped to 6 x 256, not 6 x 448.
    let ratio = scale("four-over-six") / scale("transformer-engine");
    assert!((ratio - 1.75).abs() < 1e-6, "{ratio}");
    desk.done("quantize model some --exclude *.mixer.out_proj --exclude *layers.2.*");
    let (some, original) = (desk.tensors("some"), desk.tensors("model"));
    for key in [
        "backbone.layers.0.mixer.out_proj.weight",
        "backbone.layers.2.mixer.q_proj.weight",
    ] {
        assert_eq!(some[key], original[key]);
    }
    let ignored = &desk.json("some/config.json")["quantization_config"]["ignore"];
    let ignored = ignored.as_array().unwrap();
    assert!(ignored.contains(&json!("backbone.layers.0.mixer.out_proj")));
}

#[test]
fn a_quantized_model_writes_and_its_values_come_back() {
    let desk = desk();
    let generate = |model: &str| {
        let arguments = "generate --tokenizer bytes --prompt ab --max-tokens 12 --model";
        desk.done(&format!("{arguments} {model}")).0
    };
    desk.done("quantize model four");
    desk.done("quantize model packed --format compressed-tensors");
    for format in ["four", "packed"] {
        desk.done(&format!("dequantize {format} {format}-f32 --dtype f32"));
        // Weights in 4 bits and their values are one model; greedy text is the same.
        assert_eq!(generate(format), generate(&format!("{format}-f32")));
        let config = desk.json(&format!("{format}-f32/config.json"));
        assert!(config.get("quantization_config").is_none());
        // What was quantized once is on the grid: the same codes again.
        desk.done(&format!("quantize {format}-f32 {format}-again"));
        let (again, once) = (
            desk.tensors(&format!("{format}-again")),
            desk.tensors("four"),
        );
        for key in ["in_proj.weight", "in_proj.weight_scale"] {
            let key = format!("backbone.layers.0.mixer.{key}");
            assert_eq!(again[&key].2, once[&key].2, "{key}");
        }
    }
}

#[test]
fn inspect_says_what_four_bits_do_to_each_weight() {
    let desk = desk();
    let key = "backbone.layers.0.mixer.in_proj.weight";
    let (planned, _) = desk.done("inspect model");
    desk.done("quantize model out");
    let (against, _) = desk.done("inspect out --against model");
    let (alone, _) = desk.done("inspect out");
    let (planned, against, alone) = (rows(&planned), rows(&against), rows(&alone));
    // Relative error, underflow, saturation: as planned, so done, to the digits shown.
    assert_eq!(planned[key][4..7], against[key][4..7]);
    let error: f64 = against[key][4].parse().unwrap();
    assert!((0.05..0.15).contains(&error), "{error}");
    assert_eq!(alone[key][4..7], ["-", "-", "-"]);
    assert_eq!(planned[key][7], alone[key][7]);
    assert_eq!(
        (planned[key][1].as_str(), against[key][1].as_str()),
        ("BF16", "NVFP4 modelopt")
    );
    assert_eq!(planned["lm_head.weight"][4], "-");
    let sizes = |row: &[String]| row[3].parse::<f64>().unwrap();
    let bits = sizes(&against[key]) / sizes(&planned[key]) * 16.0;
    assert!((4.5..4.51).contains(&bits), "{bits}");
}

#[test]
fn a_run_is_exported_as_its_forward_multiplies_it() {
    let desk = Desk::after_a_run();
    desk.done("export runs/done floats --format high-precision --dtype f32");
    desk.done("export runs/done four --dtype f32");
    let (floats, four) = (desk.tensors("floats"), desk.tensors("four"));
    let config = desk.json("four/config.json");
    let ignored = config["quantization_config"]["ignore"].as_array().unwrap();
    let key = "backbone.layers.0.mixer.in_proj";
    let (_, shape, scales) = &four[&format!("{key}.weight_scale")];
    // Tiles of 16x16: a scale stands in 16 rows.
    let columns = shape[1];
    for (row, line) in scales.chunks(columns).enumerate() {
        let first = row / 16 * 16 * columns;
        assert_eq!(line, &scales[first..first + columns], "row {row}");
    }
    assert!(!ignored.contains(&json!(key)));
    // What is not in 4 bits is the same in both, and linears among it are listed.
    for (key, tensor) in &four {
        if let Some(float) = floats.get(key).filter(|_| tensor.0 != Dtype::U8) {
            assert_eq!(float, tensor, "{key}");
        }
    }
    desk.done("inspect four --against floats");
    desk.done("generate --model four --tokenizer bytes --prompt ab --max-tokens 4");
    desk.refused("export runs/done four", &["four", "exists", "--force"]);
    desk.done("export runs/done four --force --format compressed-tensors");
    desk.refused(
        "export runs/done more --step 5",
        &["no checkpoint of step 5"],
    );
    desk.refused("export runs/none more", &["runs/none", "no checkpoint"]);
}

#[test]
fn what_cannot_be_quantized_is_refused_in_one_line_and_nothing_is_written() {
    let desk = desk();
    desk.done("quantize model out");
    desk.refused("quantize none x", &["none/config.json", "No such file"]);
    desk.refused("quantize model out", &["out", "exists", "--force"]);
    desk.refused("quantize model model --force", &["model", "input"]);
    desk.refused("quantize model . --force", &["may not be the input"]);
    desk.write("photos/cat.jpg", b"cat");
    desk.refused(
        "quantize model photos --force",
        &["photos", "--force does not"],
    );
    desk.refused(
        "quantize out twice",
        &["out/config.json", "quantized already", "Modelopt"],
    );
    desk.refused(
        "dequantize model x",
        &["model/config.json", "not in 4 bits"],
    );
    desk.refused(
        "quantize model x --exclude *",
        &["no tensor to quantize", "excluded"],
    );
    desk.refused(
        "quantize model x --exclude *.outproj",
        &["*.outproj", "no tensor"],
    );
    let output = desk
        .command("quantize model x --exclude [")
        .output()
        .unwrap();
    check_error(&output, 2, &["[: not a pattern"]);
    desk.write("list/config.json", b"[]");
    desk.refused("quantize list x", &["list/config.json", "JSON object"]);
    // A tensor in the place of a part.
    desk.write("taken/config.json", b"{}");
    let bytes = vec![0; 16 * 16 * 4];
    let tensor =
        |shape: &[usize], len| TensorView::new(Dtype::F32, shape.to_vec(), &bytes[..len]).unwrap();
    let tensors = [
        ("a.weight", tensor(&[16, 16], 1024)),
        ("a.weight_scale", tensor(&[1], 4)),
    ];
    serialize_to_file(tensors, None, &desk.path("taken/model.safetensors")).unwrap();
    desk.refused("quantize taken x", &["a.weight_scale", "there already"]);
    // Of a linear that is not among those that are quantized, too: found by fuzzing.
    let tensors = [
        ("a.weight", tensor(&[16, 16], 1024)),
        ("b.weight_packed", tensor(&[1], 4)),
    ];
    serialize_to_file(tensors, None, &desk.path("taken/model.safetensors")).unwrap();
    desk.refused(
        "quantize taken x --format compressed-tensors",
        &["b.weight_packed", "there already"],
    );
    desk.done("quantize taken y");
    // A quantization of another kind.
    desk.write(
        "other/config.json",
        br#"{"quantization_config": {"quant_method": "gptq"}}"#,
    );
    desk.write(
        "other/model.safetensors",
        &fs::read(first_file(&desk, "model")).unwrap(),
    );
    desk.refused("quantize other x", &["quantized already", "gptq"]);
    desk.refused("dequantize other x", &["gptq", "compressed-tensors"]);
    desk.done("quantize model out --force --rule modelopt");
}

#[test]
fn a_damaged_folder_is_an_error_never_other_numbers() {
    let desk = desk();
    // NaN has no 4-bit form.
    let nan = [f32::NAN, 1.0, 2.0, 3.0].repeat(8);
    let nan: Vec<u8> = nan.iter().flat_map(|v| v.to_le_bytes()).collect();
    write_file(
        &desk,
        "nan/model.safetensors",
        "a.weight",
        Dtype::F32,
        &[2, 16],
        &nan,
    );
    desk.write("nan/config.json", b"{}");
    desk.refused("quantize nan x", &["a.weight", "NaN"]);
    // Scales that are missing, cut off, or no numbers.
    desk.done("quantize model out");
    let file = first_with(&desk, "out", "in_proj.weight_scale");
    let whole = fs::read(&file).unwrap();
    let without = |left_out: &str| {
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        let kept = tensors.iter().filter(|(name, _)| !name.ends_with(left_out));
        let kept: Vec<_> = kept.collect();
        serialize_to_file(kept, None, &file).unwrap();
    };
    let commands = [
        "dequantize out x",
        "inspect out",
        "generate --model out --tokenizer bytes --prompt a",
    ];
    for missing in [
        "in_proj.weight_scale",
        "in_proj.weight_scale_2",
        "in_proj.weight",
    ] {
        without(missing);
        for command in commands {
            desk.refused(command, &[missing, "missing"]);
        }
    }
    let mut bad = whole.clone();
    let start = {
        let tensors = SafeTensors::deserialize(&whole).unwrap();
        let key = "backbone.layers.0.mixer.in_proj.weight_scale";
        tensors.tensor(key).unwrap().data().as_ptr() as usize - whole.as_ptr() as usize
    };
    bad[start] = 0x7F;
    fs::write(&file, &bad).unwrap();
    for command in commands {
        desk.refused(command, &["in_proj", "block scale 0 is the byte 0x7f"]);
    }
    fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    for command in commands {
        desk.refused(command, &["unreadable"]);
    }
    // A weight of 4 bits that no configuration announces.
    fs::write(&file, &whole).unwrap();
    let plain = fs::read(desk.path("model/config.json")).unwrap();
    desk.write("out/config.json", &plain);
    desk.refused(commands[2], &["in_proj.weight", "U8"]);
}

/// With both in one file, the second tensor of that name had no place in the output: a panic.
#[test]
fn a_weight_in_four_bits_and_as_floats_is_an_error() {
    let desk = desk();
    let config = json!({"quantization_config": {
        "quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"
    }});
    desk.write("both/config.json", config.to_string().as_bytes());
    let bytes = [0x3c; 64];
    let tensors = [
        ("a.weight", Dtype::BF16, vec![2, 16], 64),
        ("a.weight_packed", Dtype::U8, vec![2, 8], 16),
        ("a.weight_scale", Dtype::F8_E4M3, vec![2, 1], 2),
        ("a.weight_global_scale", Dtype::F32, vec![1], 4),
    ];
    let tensors = tensors.map(|(name, dtype, shape, len)| {
        (name, TensorView::new(dtype, shape, &bytes[..len]).unwrap())
    });
    serialize_to_file(tensors, None, &desk.path("both/model.safetensors")).unwrap();
    for command in ["dequantize both x", "inspect both"] {
        desk.refused(command, &["a.weight is in model.safetensors and again in"]);
    }
}

/// Found by fuzzing: one was codes and one was floats, so the output could not be read.
#[test]
fn a_tensor_in_two_files_is_an_error() {
    let desk = desk();
    let whole = fs::read(first_file(&desk, "model")).unwrap();
    desk.write("model/again.safetensors", &whole);
    let index = fs::read_to_string(desk.path("model/model.safetensors.index.json")).unwrap();
    let map = "\"weight_map\": {";
    let index = index.replacen(map, &format!("{map}\"x\": \"again.safetensors\", "), 1);
    desk.write("model/model.safetensors.index.json", index.as_bytes());
    desk.refused(
        "quantize model x",
        &["is in again.safetensors and again in"],
    );
    desk.refused("inspect model", &["is in again.safetensors and again in"]);
}

/// Published configurations have the entry without a value: it stood behind ours, and won.
#[test]
fn a_configuration_with_an_empty_quantization_is_announced_as_quantized() {
    let desk = desk();
    let config = fs::read_to_string(desk.path("model/config.json")).unwrap();
    let end = config.rfind('}').unwrap();
    let null = format!(
        "{},\n  \"quantization_config\": null\n}}",
        config[..end].trim_end()
    );
    desk.write("model/config.json", null.as_bytes());
    desk.done("quantize model out");
    assert_eq!(
        desk.json("out/config.json")["quantization_config"]["quant_method"],
        "modelopt"
    );
    desk.done("dequantize out floats");
    assert_eq!(
        desk.json("floats/config.json").get("quantization_config"),
        None
    );
}

/// The first tensor file of a folder.
fn first_file(desk: &Desk, folder: &str) -> PathBuf {
    first_with(desk, folder, "")
}

/// The first tensor file of a folder that has a tensor of this ending.
fn first_with(desk: &Desk, folder: &str, ending: &str) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(desk.path(folder))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    let has = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        tensors.names().iter().any(|name| name.ends_with(ending))
    };
    files.into_iter().find(has).unwrap()
}

fn write_file(desk: &Desk, path: &str, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) {
    desk.write(path, b"");
    let view = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    serialize_to_file([(name, view)], None, &desk.path(path)).unwrap();
}
