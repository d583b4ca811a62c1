//! Directories of any architecture, quantized, dequantized and inspected.

use burn_nvfp4::export::ServingFormat;
use burn_nvfp4_models::config::hf::StoredFloat;
use burn_nvfp4_models::serving::{
    DEFAULT_EXCLUDES, Force, Inspected, QuantizeOptions, Selection, WeightRule,
    dequantize_directory, inspect_directory, is_quantized, quantize_directory,
};

use super::checkpoint::FILES;
use crate::bundle::{Bundle, Desk};

/// Inspects a directory, and writes it in 4 bits and as floats. What was written is announced as
/// what it is, and can be read.
pub(super) fn convert(desk: &Desk, bundle: &Bundle<'_>) -> bool {
    desk.lay(bundle, &FILES);
    let Ok(quantized) = is_quantized(&desk.path("")) else {
        return false;
    };
    match quantized {
        true => inspect(desk, "") & inspect_against_itself(desk) & dequantize(desk, ""),
        false => {
            let formats = [ServingFormat::Modelopt, ServingFormat::CompressedTensors];
            formats.map(|format| quantize(desk, format)) == [true; 2] && plan(desk)
        }
    }
}

fn selection() -> Selection {
    Selection::excluding(&DEFAULT_EXCLUDES, &[]).expect("our own patterns")
}

fn inspect(desk: &Desk, name: &str) -> bool {
    let mut tensors = 0;
    let inspected = inspect_directory(&desk.path(name), &Inspected::Alone, &mut |_| tensors += 1);
    inspected.is_ok()
}

fn inspect_against_itself(desk: &Desk) -> bool {
    let folder = desk.path("");
    // Its weights are in no floats there.
    let inspected = inspect_directory(&folder, &Inspected::Against(&folder), &mut |_| {});
    inspected.is_err() || inspect(desk, "")
}

fn plan(desk: &Desk) -> bool {
    let what = Inspected::Planned {
        rule: WeightRule::FourOverSix,
        selection: &selection(),
    };
    inspect_directory(&desk.path(""), &what, &mut |_| {}).is_ok()
}

fn quantize(desk: &Desk, format: ServingFormat) -> bool {
    desk.clear("quantized");
    let rule = match format {
        ServingFormat::Modelopt => WeightRule::TransformerEngine,
        ServingFormat::CompressedTensors => WeightRule::Modelopt,
    };
    let options = QuantizeOptions {
        format,
        rule,
        selection: selection(),
        force: Force::Refuse,
    };
    let output = desk.path("quantized");
    // What is beside the tensors is copied: not what was written before.
    if quantize_directory(&desk.path(""), &output, &options, &mut |_| {}).is_err() {
        return false;
    }
    assert!(
        matches!(is_quantized(&output), Ok(true)),
        "it is not announced"
    );
    assert!(inspect(desk, "quantized"), "it cannot be read");
    assert!(dequantize(desk, "quantized"), "it cannot be dequantized");
    true
}

fn dequantize(desk: &Desk, name: &str) -> bool {
    desk.clear("floats");
    let (input, output) = (desk.path(name), desk.path("floats"));
    let done = dequantize_directory(
        &input,
        &output,
        StoredFloat::F32,
        Force::Refuse,
        &mut |_| {},
    );
    if done.is_err() {
        return false;
    }
    assert!(
        matches!(is_quantized(&output), Ok(false)),
        "it is announced still"
    );
    true
}
