//! Served weights: values kept, parts that join again, scales as each loader reads them.

use half::bf16;

use super::*;
use crate::cpu::{self, Contraction, MatrixView, quantize};
use crate::recipe::{OperandSpec, Rounding, ScaleRule, Transform, presets};
use crate::rng::{RandomKey, Stream};

const FORMATS: [ServingFormat; 2] = [ServingFormat::Modelopt, ServingFormat::CompressedTensors];

fn key() -> RandomKey {
    RandomKey {
        seed: 0,
        step: 0,
        micro_batch: 0,
        stream: Stream::Other(0),
    }
}

fn spec(block: BlockShape) -> OperandSpec {
    OperandSpec::Nvfp4 {
        block,
        scale: ScaleRule::Tensor,
        rounding: Rounding::NearestEven,
        transform: Transform::None,
    }
}

/// Values over many magnitudes, with a row of zeros and blocks that vanish under the tensor scale.
fn weight(rows: usize, k: usize) -> Vec<f32> {
    let mut state = 7_u32;
    let mut values = Vec::with_capacity(rows * k);
    for row in 0..rows {
        for _ in 0..k {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = f32::from_bits(0x3F80_0000 | state >> 9) - 1.5;
            let scale = match row % 5 {
                3 => 0.0,
                4 => 1e-7,
                _ => 0.1,
            };
            values.push(bf16::from_f32(value * scale).to_f32());
        }
    }
    values
}

fn packed(block: BlockShape, values: &[f32], rows: usize, k: usize) -> PackedMatrix {
    let view = MatrixView::new(values, rows, k).unwrap();
    quantize(view, Contraction::Columns, &spec(block), key()).unwrap()
}

/// Bits, but for the sign of zero.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| (v + 0.0).to_bits()).collect()
}

#[test]
fn a_served_weight_has_the_values_of_the_quantizer() {
    let (rows, k) = (35, 64);
    let values = weight(rows, k);
    for block in [BlockShape::Row16, BlockShape::Tile16x16] {
        let packed = packed(block, &values, rows, k);
        let served = served(&packed).unwrap();
        assert_eq!(
            bits(&cpu::dequantize(&served)),
            bits(&cpu::dequantize(&packed))
        );
        assert_eq!(
            bits(&cpu::decode_operand(&served)),
            bits(&cpu::decode_operand(&packed))
        );
    }
}

#[test]
fn a_block_that_vanishes_is_zeros_under_scale_one() {
    let (rows, k) = (10, 32);
    let packed = packed(BlockShape::Row16, &weight(rows, k), rows, k);
    let served = served(&packed).unwrap();
    let parts = ServingFormat::Modelopt.split(&served).unwrap();
    for row in [3, 4, 8, 9] {
        assert_eq!(parts.scales[row * 2..row * 2 + 2], [ONE; 2], "row {row}");
        assert_eq!(parts.codes[row * 16..row * 16 + 16], [0; 16], "row {row}");
    }
    assert!(parts.scales[..6].iter().all(|&scale| scale != ONE));
}

#[test]
fn parts_join_to_the_same_matrix() {
    let (rows, k) = (6, 48);
    // f32 weights: their amax cannot be told from the tensor scale.
    for extreme in [0.123_456_79_f32, 3.000_000_2, 1.0e-30, 6.5e4] {
        let mut values = weight(rows, k);
        values[5] = extreme;
        let served = served(&packed(BlockShape::Row16, &values, rows, k)).unwrap();
        let mut note = AmaxNote::default();
        note.insert("layers.0.up", &served);
        let note = AmaxNote::decode(&note.encode());
        for format in FORMATS {
            let parts = format.split(&served).unwrap();
            let layout = format.layout(rows, k);
            assert_eq!(layout[0].bytes(), parts.codes.len());
            assert_eq!(layout[1].bytes(), parts.scales.len());
            let joined = format
                .join((rows, k), parts, note.get("layers.0.up"))
                .unwrap();
            assert_eq!(joined, served, "{format:?} {extreme}");
        }
    }
}

#[test]
fn the_amax_of_a_bf16_weight_follows_from_its_tensor_scale() {
    for format in FORMATS {
        for upper in 0x2000..0x5000_u32 {
            let amax = f32::from_bits(upper << 16);
            let stored = format.stored_scale(amax, NVFP4_Q_MAX);
            assert_eq!(format.amax(stored), amax, "{format:?} {amax:e}");
        }
    }
}

#[test]
fn a_note_that_does_not_fit_the_tensor_scale_is_not_believed() {
    let (rows, k) = (2, 16);
    let served = served(&packed(BlockShape::Row16, &weight(rows, k), rows, k)).unwrap();
    for format in FORMATS {
        let parts = format.split(&served).unwrap();
        let joined = format
            .join((rows, k), parts, Some((123.0, NVFP4_Q_MAX)))
            .unwrap();
        assert_eq!(joined, served);
    }
}

#[test]
fn four_over_six_keeps_its_own_tensor_scale() {
    let (rows, k) = (4, 32);
    let values = weight(rows, k);
    let spec = presets::by_name("four_over_six").unwrap().recipe.fprop.rhs;
    let view = MatrixView::new(&values, rows, k).unwrap();
    let packed = quantize(view, Contraction::Columns, &spec, key()).unwrap();
    let served = served(&packed).unwrap();
    let amax = cpu::tensor_amax(&values);
    let scale = |format: ServingFormat| format.split(&served).unwrap().tensor;
    assert_eq!(scale(ServingFormat::Modelopt), amax / 1536.0);
    assert_eq!(scale(ServingFormat::CompressedTensors), 1536.0 / amax);
}

#[test]
fn values_are_decoded_as_each_loader_does() {
    // 1.5 under block scale 1.75 and tensor amax 0.3, each factor rounded on its own.
    let scales = BlockScales::E4m3(vec![0x3E]);
    let tensor = TensorScale {
        amax: vec![0.3],
        q_max: NVFP4_Q_MAX,
    };
    let format = Format::Nvfp4 {
        block: BlockShape::Row16,
    };
    let matrix = PackedMatrix::from_parts((1, 16), format, vec![0x33; 8], scales, tensor).unwrap();
    let modelopt = ServingFormat::Modelopt.dequantize(&matrix).unwrap();
    assert_eq!(modelopt, [1.5 * (1.75 * (0.3_f32 / 2688.0)); 16]);
    let compressed = ServingFormat::CompressedTensors
        .dequantize(&matrix)
        .unwrap();
    assert_eq!(compressed, [1.5 * (1.75 / (2688.0 / 0.3_f32)); 16]);
}

#[test]
fn scales_that_no_quantizer_writes_are_refused() {
    let join = |codes: usize, scale: u8, tensor: f32, k: usize| {
        let (codes, scales) = (vec![0; codes], vec![scale; k.div_ceil(16)]);
        let parts = Parts {
            codes: &codes,
            scales: &scales,
            tensor,
        };
        let joined = ServingFormat::Modelopt.join((1, k), parts, None);
        joined.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(join(8, 0x38, 1.0, 16), Ok(()));
    let message = |result: Result<(), String>| result.unwrap_err();
    assert!(message(join(8, 0x7F, 1.0, 16)).contains("block scale 0 is the byte 0x7f"));
    assert!(message(join(8, 0xB8, 1.0, 16)).contains("0xb8"));
    assert!(message(join(8, 0x38, f32::NAN, 16)).contains("NaN"));
    assert!(message(join(8, 0x38, 0.0, 16)).contains("positive"));
    assert!(message(join(7, 0x38, 1.0, 16)).contains("codes have length 7"));
    assert!(message(join(8, 0x38, 1.0, 17)).contains("blocks of 16"));
}

#[test]
fn a_given_amax_takes_the_place_of_the_measured_one() {
    let (rows, k) = (3, 32);
    let values = weight(rows, k);
    let view = MatrixView::new(&values, rows, k).unwrap();
    let spec = spec(BlockShape::Row16);
    let own = cpu::tensor_amax(&values);
    let with = |amax| cpu::quantize_with_amax(view, Contraction::Columns, &spec, amax, key());
    assert_eq!(
        with(own).unwrap(),
        quantize(view, Contraction::Columns, &spec, key()).unwrap()
    );
    // Two parts under the amax of the whole are the whole.
    let whole = with(1.0).unwrap();
    let mut codes = Vec::new();
    for part in values.chunks(k) {
        let view = MatrixView::new(part, 1, k).unwrap();
        let part = cpu::quantize_with_amax(view, Contraction::Columns, &spec, 1.0, key()).unwrap();
        codes.extend_from_slice(part.codes());
    }
    assert_eq!(codes, whole.codes());
    let rows = OperandSpec::Nvfp4 {
        block: BlockShape::Row16,
        scale: ScaleRule::Row,
        rounding: Rounding::NearestEven,
        transform: Transform::None,
    };
    let refused = cpu::quantize_with_amax(view, Contraction::Columns, &rows, own, key());
    assert!(refused.is_err());
}

#[test]
fn model_optimizers_order_of_operations_is_its_own() {
    let (rows, k) = (64, 256);
    let mut values = weight(rows, k);
    // An amax at which the two orders of operations pick other scales (numerics §2).
    values[0] = 8.75;
    let view = MatrixView::new(&values, rows, k).unwrap();
    let theirs = quantize_as_modelopt(view, 8.75).unwrap();
    let parts = ServingFormat::Modelopt.split(&theirs).unwrap();
    let tensor = 8.75_f32 / 2688.0;
    for (block, (&scale, codes)) in parts.scales.iter().zip(parts.codes.chunks(8)).enumerate() {
        let values = &values[block * 16..][..16];
        let amax = values.iter().fold(0.0_f32, |amax, v| amax.max(v.abs()));
        let exact = amax / (6.0 * tensor);
        let expected = if amax == 0.0 {
            1.0
        } else {
            exact.max(1.0 / 512.0)
        };
        assert_eq!(scale, e4m3::encode(expected), "block {block}");
        for (i, value) in values.iter().enumerate() {
            let y = value / (e4m3::decode(scale) * tensor);
            let code = codes[i / 2] >> (4 * (i % 2)) & 0xF;
            let code_value = crate::format::e2m1::decode(code);
            // No other code is nearer.
            for other in crate::format::e2m1::VALUES {
                assert!(
                    (y - code_value).abs() <= (y - other).abs(),
                    "{y} became {code_value}"
                );
            }
        }
    }
    let ours = served(&packed(BlockShape::Row16, &values, rows, k)).unwrap();
    let ours = ServingFormat::Modelopt.split(&ours).unwrap();
    assert_ne!(ours.scales, parts.scales);
}
