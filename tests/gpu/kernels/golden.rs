//! TransformerEngine's vectors on the device, at zero tolerance.

use burn::tensor::TensorData;
use burn_nvfp4::cpu::Contraction;
use burn_nvfp4::format::PackedMatrix;
use burn_nvfp4::format::Reading;
use burn_nvfp4::kernels::dequantize::{dequantize, to_host};
use burn_nvfp4::kernels::quantize::{Job, Packing, quantize};
use burn_nvfp4::recipe::{
    BlockError, BlockShape, ErrorArithmetic, OperandSpec, ScaleBound, ScaleRule, SignVector,
    Transform,
};
use safetensors::Dtype;
use tests::golden::{Golden, Record, open_directory, te_nvfp4_directory};

use super::data::{KEY, ROW16, TILE, four_over_six, nvfp4};
use crate::device::{Device, Runtime, device, download, upload};

#[test]
fn transformer_engine_vectors_hold_bit_for_bit() {
    let Some(device) = device() else { return };
    let mut compared = 0;
    for mut record in open_directory(&te_nvfp4_directory()).unwrap() {
        let check = match record.name() {
            "rowwise_1d" => check_rowwise,
            "weight_2d" => check_weight,
            "rht_columnwise" => check_rht,
            "gemm" => check_gemm,
            "linear" => check_linear,
            "four_over_six" => check_four_over_six,
            "row_scaled" => check_row_scaled,
            "edge" => check_edge,
            "stochastic" => check_stochastic,
            _ => continue,
        };
        check(&mut record, &device);
        println!("{record}");
        compared += record.compared_tensors();
        assert!(
            record.failures().is_empty(),
            "{}",
            record.failures().join("\n")
        );
    }
    assert!(
        compared > 0,
        "no vectors in {}",
        te_nvfp4_directory().display()
    );
}

/// Quantizes on the device, and brings back codes and, of what was packed as asked, values.
fn quantized(
    x: &Golden,
    along: Contraction,
    spec: OperandSpec,
    device: &Device,
) -> (PackedMatrix, Option<Vec<f32>>) {
    let (rows, cols) = x.matrix_shape();
    // Widened exactly: bf16 sources are another test's business.
    let values: Vec<f32> = if x.dtype == Dtype::F32 {
        x.f32()
    } else {
        x.bf16().iter().map(|value| value.to_f32()).collect()
    };
    let tensor = upload(TensorData::new(values, [rows, cols]), device);
    let job = Job {
        spec,
        along,
        key: KEY,
        packing: Packing::EitherAxis,
        decoded: None,
    };
    let got = quantize::<Runtime>(&tensor, &[job], None).remove(0);
    let packed = got.packed.unwrap();
    let host = to_host(&packed);
    match got.reading {
        Reading::AsPacked => (host, Some(download(&dequantize(&packed)))),
        Reading::Transposed => (host.transpose().unwrap(), None),
    }
}

/// Codes, scales and amax under keys that end in `suffix`.
fn compare_packed(record: &mut Record, prefix: &str, suffix: &str, packed: &PackedMatrix) {
    record.compare_bytes(&format!("{prefix}codes{suffix}"), packed.codes());
    let scales = packed.row_block_scales();
    record.compare_bytes(&format!("{prefix}scales{suffix}"), &scales);
    record.compare_f32(
        &format!("{prefix}amax{suffix}"),
        &packed.tensor_scale().amax,
    );
}

fn check_rowwise(record: &mut Record, device: &Device) {
    for case in record.cases_with("x") {
        let x = record.input(&format!("{case}.x"));
        let (packed, values) = quantized(&x, Contraction::Columns, ROW16, device);
        compare_packed(record, &format!("{case}."), "", &packed);
        record.compare_f32(&format!("{case}.dq"), &values.unwrap());
    }
}

fn check_weight(record: &mut Record, device: &Device) {
    for case in record.cases_with("x") {
        let x = record.input(&format!("{case}.x"));
        let (packed, values) = quantized(&x, Contraction::Columns, TILE, device);
        compare_packed(record, &format!("{case}."), "", &packed);
        record.compare_f32(&format!("{case}.dq"), &values.unwrap());
        let (transposed, _) = quantized(&x, Contraction::Rows, TILE, device);
        compare_packed(record, &format!("{case}."), "_t", &transposed);
    }
}

fn check_rht(record: &mut Record, device: &Device) {
    for case in record.cases_with("x") {
        let key = |field: &str| format!("{case}.{field}");
        let x = record.input(&key("x"));
        let signs = if case.ends_with(".nosign") {
            SignVector::PLAIN
        } else {
            SignVector::TRANSFORMER_ENGINE
        };
        let (plain, _) = quantized(&x, Contraction::Columns, ROW16, device);
        compare_packed(record, &key(""), "", &plain);
        record.compare_f32(&key("amax_row"), &plain.tensor_scale().amax);
        let spec = ROW16.with_transform(Transform::Hadamard { signs });
        let (packed, values) = quantized(&x, Contraction::Rows, spec, device);
        compare_packed(record, &key(""), "_t", &packed);
        record.compare_f32(&key("amax_col"), &packed.tensor_scale().amax);
        record.compare_f32(&key("dq_t"), &values.unwrap());
    }
}

fn check_gemm(record: &mut Record, device: &Device) {
    for case in record.cases_with("w") {
        for (name, spec) in [("x", ROW16), ("w", TILE)] {
            let x = record.input(&format!("{case}.{name}"));
            let (packed, _) = quantized(&x, Contraction::Columns, spec, device);
            compare_packed(record, &format!("{case}.{name}_"), "", &packed);
        }
    }
}

fn check_linear(record: &mut Record, device: &Device) {
    for case in record.cases_with("dy") {
        for (name, rows, columns) in [
            ("x", ROW16, ROW16.with_hadamard()),
            ("dy", ROW16, ROW16.with_hadamard()),
            ("w", TILE, TILE),
        ] {
            let x = record.input(&format!("{case}.{name}"));
            let prefix = format!("{case}.{name}_");
            let (packed, _) = quantized(&x, Contraction::Columns, rows, device);
            compare_packed(record, &prefix, "", &packed);
            let (packed, _) = quantized(&x, Contraction::Rows, columns, device);
            compare_packed(record, &prefix, "_t", &packed);
        }
    }
}

fn check_four_over_six(record: &mut Record, device: &Device) {
    for case in record.cases_with("x") {
        let x = record.input(&format!("{case}.x"));
        for (block_name, block) in [("1d", BlockShape::Row16), ("2d", BlockShape::Tile16x16)] {
            for (error_name, error) in [("mae", BlockError::Mae), ("mse", BlockError::Mse)] {
                for (bound_name, bound) in [
                    ("256", ScaleBound::E4m3At256),
                    ("448", ScaleBound::E4m3At448),
                ] {
                    for (arithmetic_name, arithmetic) in [
                        ("exact", ErrorArithmetic::Exact),
                        ("fast", ErrorArithmetic::Fast),
                    ] {
                        let spec = nvfp4(block, four_over_six(bound, error, arithmetic));
                        let (packed, _) = quantized(&x, Contraction::Columns, spec, device);
                        let key = format!(
                            "{case}.{block_name}.{error_name}.{bound_name}.{arithmetic_name}."
                        );
                        compare_packed(record, &key, "", &packed);
                    }
                }
            }
        }
    }
}

fn check_row_scaled(record: &mut Record, device: &Device) {
    let spec = nvfp4(BlockShape::Row16, ScaleRule::Row);
    for case in record.cases_with("x") {
        let x = record.input(&format!("{case}.x"));
        let (packed, values) = quantized(&x, Contraction::Columns, spec, device);
        compare_packed(record, &format!("{case}."), "", &packed);
        record.compare_f32(&format!("{case}.dq"), &values.unwrap());
        let (transposed, _) = quantized(&x, Contraction::Rows, spec, device);
        compare_packed(record, &format!("{case}."), "_t", &transposed);
    }
}

fn check_edge(record: &mut Record, device: &Device) {
    for case in record.cases_with("cuda_codes") {
        let x = record.input(&format!("{case}.x"));
        let (packed, _) = quantized(&x, Contraction::Columns, ROW16, device);
        compare_packed(record, &format!("{case}.cuda_"), "", &packed);
    }
}

/// Scales and amax are those of rounding to nearest; codes for given bytes are `cpu`'s business.
fn check_stochastic(record: &mut Record, device: &Device) {
    for case in record.cases_with("rbits") {
        let x = record.input(&format!("{case}.x"));
        let (packed, _) = quantized(&x, Contraction::Columns, ROW16, device);
        record.compare_bytes(&format!("{case}.scales"), &packed.row_block_scales());
        record.compare_f32(&format!("{case}.amax"), &packed.tensor_scale().amax);
    }
}
