//! TransformerEngine's vectors, at zero tolerance before a GEMM.
//!
//! Cases are found by looking into the files, so any directory of the same layout can take the
//! place of ours: `NVFP4_GOLDEN=<dir> cargo test -p tests golden -- --nocapture`.
//!
//! Mutants that the files kill, out of 93 rowwise cases (counts by the authors of the vectors):
//! `(b/6)*S_enc` 5, `(b*S_enc)/6` 5, `S_enc/scale` 9, division by the scale 14, f64 division 17,
//! encode scale 0 for a zero block scale 6, E4M3 rounded up 46 or down 51, bf16 encode scale 51,
//! ties away from zero 20, sign of zero lost 72.

use burn_nvfp4::QuantizeError;
use burn_nvfp4::cpu::Alpha;
use burn_nvfp4::cpu::{
    Contraction, Element, MatrixView, decode_operand, dequantize, gemm, gemm_alpha, gemm_f64,
    hadamard, quantize, quantize_operand, tensor_amax,
};
use burn_nvfp4::format::scale::{NVFP4_Q_MAX, NVFP4_Q_MAX_256, Nvfp4Scaling, tensor_encode_scale};
use burn_nvfp4::format::{BlockScales, PackedMatrix, e2m1, e4m3, packing, swizzle};
use burn_nvfp4::recipe::{
    BlockError, BlockShape, ErrorArithmetic, OperandSpec, Rounding, ScaleBound, ScaleRule,
    SignVector, Transform,
};
use burn_nvfp4::rng::{RandomKey, Stream, philox4x32_10};
use half::bf16;
use safetensors::Dtype;
use tests::golden::{Golden, Record, open_directory, te_nvfp4_directory};
use tests::tolerance::{BF16_OF_VALUE, GEMM_F32_OF_LARGEST};

const KEY: RandomKey = RandomKey {
    seed: 0,
    step: 0,
    micro_batch: 0,
    stream: Stream::Dgrad,
};
const ROW16: OperandSpec = nvfp4(BlockShape::Row16, ScaleRule::Tensor);
const TILE: OperandSpec = nvfp4(BlockShape::Tile16x16, ScaleRule::Tensor);

const fn nvfp4(block: BlockShape, scale: ScaleRule) -> OperandSpec {
    let (rounding, transform) = (Rounding::NearestEven, Transform::None);
    OperandSpec::Nvfp4 {
        block,
        scale,
        rounding,
        transform,
    }
}

#[test]
fn transformer_engine_vectors_hold_bit_for_bit() {
    let directory = te_nvfp4_directory();
    let mut records = open_directory(&directory).unwrap();
    let mut problems = Vec::new();
    for record in &mut records {
        let check = match record.name() {
            "rowwise_1d" => check_rowwise,
            "weight_2d" => check_weight,
            "rht_columnwise" => check_rht,
            "gemm" => check_gemm,
            "linear" => check_linear,
            "four_over_six" => check_four_over_six,
            "row_scaled" => check_row_scaled,
            "swizzle" => check_swizzle,
            "edge" => check_edge,
            "stochastic" => check_stochastic,
            unknown => {
                println!("{unknown:<16} not compared: no check for this file");
                continue;
            }
        };
        check(record);
        println!("{record}");
        for key in record.untouched() {
            // The Python reference's own special values; numerics §9 says where we differ and why.
            let why = if key.contains(".ref_") {
                ", by design"
            } else {
                ""
            };
            println!("    not compared{why}: {key}");
        }
        problems.extend(
            record
                .failures()
                .iter()
                .map(|f| format!("{}: {f}", record.name())),
        );
        if record.compared_tensors() == 0 {
            problems.push(format!("{}: nothing was compared", record.name()));
        }
    }
    let compared: usize = records.iter().map(Record::compared_tensors).sum();
    assert!(
        compared > 0,
        "nothing was compared in {}",
        directory.display()
    );
    assert!(
        problems.is_empty(),
        "{} problems:\n{}",
        problems.len(),
        problems.join("\n")
    );
}

/// An operand in the type that the file has it in.
struct Operand {
    elements: Elements,
    rows: usize,
    cols: usize,
}

enum Elements {
    Bf16(Vec<bf16>),
    F32(Vec<f32>),
}

impl Operand {
    fn new(golden: &Golden) -> Self {
        let elements = if golden.dtype == Dtype::BF16 {
            Elements::Bf16(golden.bf16())
        } else {
            Elements::F32(golden.f32())
        };
        let (rows, cols) = golden.matrix_shape();
        Self {
            elements,
            rows,
            cols,
        }
    }

    fn quantize(&self, along: Contraction, spec: &OperandSpec) -> PackedMatrix {
        match &self.elements {
            Elements::Bf16(x) => quantized(x, self, along, spec),
            Elements::F32(x) => quantized(x, self, along, spec),
        }
        .unwrap()
    }

    fn to_f32(&self) -> Vec<f32> {
        match &self.elements {
            Elements::Bf16(x) => x.iter().map(|v| v.to_f32()).collect(),
            Elements::F32(x) => x.clone(),
        }
    }
}

/// Quantizes, and holds the fused path to the same bits on the way.
fn quantized<E: Element>(
    x: &[E],
    operand: &Operand,
    along: Contraction,
    spec: &OperandSpec,
) -> Result<PackedMatrix, QuantizeError> {
    let view = MatrixView::new(x, operand.rows, operand.cols)?;
    let packed = quantize(view, along, spec, KEY)?;
    let (fused, scale) = quantize_operand(view, along, spec, KEY)?;
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(bits(fused), bits(decode_operand(&packed)));
    assert_eq!(&scale, packed.tensor_scale());
    Ok(packed)
}

/// Codes, scales and amax under keys that end in `suffix`.
fn compare_packed(record: &mut Record, prefix: &str, suffix: &str, packed: &PackedMatrix) {
    record.compare_bytes(&format!("{prefix}codes{suffix}"), packed.codes());
    record.compare_bytes(
        &format!("{prefix}scales{suffix}"),
        &packed.row_block_scales(),
    );
    record.compare_f32(
        &format!("{prefix}amax{suffix}"),
        &packed.tensor_scale().amax,
    );
}

fn check_rowwise(record: &mut Record) {
    for case in record.cases_with("x") {
        let x = Operand::new(&record.input(&format!("{case}.x")));
        let packed = x.quantize(Contraction::Columns, &ROW16);
        compare_packed(record, &format!("{case}."), "", &packed);
        let amax = packed.tensor_scale().amax[0];
        record.compare_f32(
            &format!("{case}.s_enc"),
            &[tensor_encode_scale(amax, NVFP4_Q_MAX)],
        );
        let scaling = Nvfp4Scaling::new(amax, NVFP4_Q_MAX);
        let scales = packed.row_block_scales();
        let encode: Vec<f32> = scales
            .iter()
            .map(|&s| scaling.block_encode_scale(s))
            .collect();
        record.compare_f32(&format!("{case}.enc"), &encode);
        record.compare_f32(&format!("{case}.dq"), &dequantize(&packed));
    }
}

fn check_weight(record: &mut Record) {
    for case in record.cases_with("x") {
        let x = Operand::new(&record.input(&format!("{case}.x")));
        let packed = x.quantize(Contraction::Columns, &TILE);
        compare_packed(record, &format!("{case}."), "", &packed);
        if let BlockScales::E4m3(tiles) = packed.block_scales() {
            record.compare_bytes(&format!("{case}.block_scales"), tiles);
        }
        record.compare_f32(&format!("{case}.dq"), &dequantize(&packed));
        // The transpose in both ways: re-laid, and quantized along the other axis.
        let transposed = packed.transpose().unwrap();
        assert_eq!(transposed, x.quantize(Contraction::Rows, &TILE), "{case}");
        compare_packed(record, &format!("{case}."), "_t", &transposed);
    }
}

fn check_rht(record: &mut Record) {
    let te = SignVector::TRANSFORMER_ENGINE;
    let signs: Vec<i64> = (0..16)
        .map(|i| if te.0 >> i & 1 == 1 { -1 } else { 1 })
        .collect();
    record.compare_i64("sign_vector", &signs);
    record.compare_i64("sign_mask", &[i64::from(te.0)]);
    let mut plain = Vec::new();
    let mut with_signs = Vec::new();
    for i in 0..16 {
        let mut unit = [0.0_f32; 16];
        unit[i] = 1.0;
        let mut row = unit;
        hadamard(&mut row, SignVector::PLAIN);
        plain.extend(row.map(|v| if v < 0.0 { -1 } else { 1 }));
        hadamard(&mut unit, te);
        with_signs.extend(unit.map(f64::from));
    }
    record.compare_i64("hadamard", &plain);
    record.compare_close("rht_matrix", &with_signs, 0.0, 0.0);
    for case in record.cases_with("x") {
        let key = |field: &str| format!("{case}.{field}");
        let x = Operand::new(&record.input(&key("x")));
        let signs = if case.ends_with(".nosign") {
            SignVector::PLAIN
        } else {
            te
        };
        let rotated = transposed_hadamard(&x, signs);
        record.compare_close(&key("rht_t"), &rotated, 0.0, 0.0);
        let plain = x.quantize(Contraction::Columns, &ROW16);
        compare_packed(record, &key(""), "", &plain);
        record.compare_f32(&key("amax_row"), &plain.tensor_scale().amax);
        let spec = ROW16.with_transform(Transform::Hadamard { signs });
        let packed = x.quantize(Contraction::Rows, &spec);
        compare_packed(record, &key(""), "_t", &packed);
        record.compare_f32(&key("amax_col"), &packed.tensor_scale().amax);
        record.compare_f32(&key("dq_t"), &dequantize(&packed));
    }
}

/// The transpose, every 16 elements of a row behind the transform.
fn transposed_hadamard(x: &Operand, signs: SignVector) -> Vec<f64> {
    let values = x.to_f32();
    let mut rotated = Vec::new();
    for col in 0..x.cols {
        let mut row: Vec<f32> = (0..x.rows).map(|row| values[row * x.cols + col]).collect();
        hadamard(&mut row, signs);
        rotated.extend(row.into_iter().map(f64::from));
    }
    rotated
}

/// Compares one GEMM: exact sums, alpha, and the f32 result.
fn compare_gemm(record: &mut Record, prefix: &str, a: &PackedMatrix, b: &PackedMatrix) {
    let sums = gemm_f64(a, b);
    record.compare_f64(&format!("{prefix}.acc_f64"), &sums);
    let alpha = gemm_alpha(a.tensor_scale(), b.tensor_scale());
    if let Alpha::Tensor(alpha) = &alpha {
        record.compare_f32(&format!("{prefix}.alpha"), &[*alpha]);
    }
    let (lhs, rhs) = (decode_operand(a), decode_operand(b));
    let y = gemm(&lhs, &rhs, a.rows(), b.rows(), a.padded_k(), &alpha);
    let y: Vec<f64> = y.into_iter().map(f64::from).collect();
    for (field, of_value) in [
        ("y_f64", 0.0),
        ("y_te_f32", 0.0),
        ("y_te_bf16", BF16_OF_VALUE),
    ] {
        record.compare_close(
            &format!("{prefix}.{field}"),
            &y,
            GEMM_F32_OF_LARGEST,
            of_value,
        );
    }
}

fn check_gemm(record: &mut Record) {
    for case in record.cases_with("w") {
        let x = Operand::new(&record.input(&format!("{case}.x")));
        let w = Operand::new(&record.input(&format!("{case}.w")));
        let x = x.quantize(Contraction::Columns, &ROW16);
        let w = w.quantize(Contraction::Columns, &TILE);
        compare_packed(record, &format!("{case}.x_"), "", &x);
        compare_packed(record, &format!("{case}.w_"), "", &w);
        compare_gemm(record, &case, &x, &w);
    }
}

fn check_linear(record: &mut Record) {
    let columnwise = ROW16.with_hadamard();
    for case in record.cases_with("dy") {
        let mut operand = |name: &str| Operand::new(&record.input(&format!("{case}.{name}")));
        let (x, w, dy) = (operand("x"), operand("w"), operand("dy"));
        let x_rows = x.quantize(Contraction::Columns, &ROW16);
        let x_columns = x.quantize(Contraction::Rows, &columnwise);
        let dy_rows = dy.quantize(Contraction::Columns, &ROW16);
        let dy_columns = dy.quantize(Contraction::Rows, &columnwise);
        let w_rows = w.quantize(Contraction::Columns, &TILE);
        let w_columns = w_rows.transpose().unwrap();
        for (name, suffix, packed) in [
            ("x_", "", &x_rows),
            ("x_", "_t", &x_columns),
            ("dy_", "", &dy_rows),
            ("dy_", "_t", &dy_columns),
            ("w_", "", &w_rows),
            ("w_", "_t", &w_columns),
        ] {
            compare_packed(record, &format!("{case}.{name}"), suffix, packed);
        }
        compare_gemm(record, &format!("{case}.fprop"), &x_rows, &w_rows);
        compare_gemm(record, &format!("{case}.dgrad"), &dy_rows, &w_columns);
        compare_gemm(record, &format!("{case}.wgrad"), &dy_columns, &x_columns);
    }
}

fn check_four_over_six(record: &mut Record) {
    for case in record.cases_with("x") {
        let x = Operand::new(&record.input(&format!("{case}.x")));
        record.compare_f32(&format!("{case}.amax"), &[tensor_amax(&x.to_f32())]);
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
                        let rule = ScaleRule::FourOverSix {
                            bound,
                            error,
                            arithmetic,
                        };
                        let packed = x.quantize(Contraction::Columns, &nvfp4(block, rule));
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

fn check_row_scaled(record: &mut Record) {
    let spec = nvfp4(BlockShape::Row16, ScaleRule::Row);
    for case in record.cases_with("x") {
        let x = Operand::new(&record.input(&format!("{case}.x")));
        let packed = x.quantize(Contraction::Columns, &spec);
        compare_packed(record, &format!("{case}."), "", &packed);
        record.compare_f32(&format!("{case}.dq"), &dequantize(&packed));
        let transposed = x.quantize(Contraction::Rows, &spec);
        compare_packed(record, &format!("{case}."), "_t", &transposed);
    }
}

fn check_swizzle(record: &mut Record) {
    for case in record.cases_with("linear") {
        let linear = record.input(&format!("{case}.linear"));
        let (rows, cols) = linear.matrix_shape();
        let swizzled = swizzle::swizzle(&linear.u8(), rows, cols).unwrap();
        record.compare_bytes(&format!("{case}.swizzled"), &swizzled);
        let back = swizzle::unswizzle(&swizzled, rows, cols).unwrap();
        record.compare_bytes(&format!("{case}.linear"), &back);
    }
}

fn check_edge(record: &mut Record) {
    for case in record.cases_with("code") {
        let x = record.input(&format!("{case}.x")).f32();
        if case == "e4m3" {
            let codes: Vec<u8> = x.iter().map(|&x| e4m3::encode(x)).collect();
            record.compare_bytes("e4m3.code", &codes);
        } else {
            let codes: Vec<u8> = x.iter().map(|&x| e2m1::encode_rne(x)).collect();
            record.compare_bytes(&format!("{case}.code"), &codes);
            // The Python reference differs in the two inputs that numerics §9 names, no others.
            let as_reference = |(&x, &code): (&f32, &u8)| {
                if x.is_nan() || x == 0.0 { 0 } else { code }
            };
            let reference: Vec<u8> = x.iter().zip(&codes).map(as_reference).collect();
            record.compare_bytes(&format!("{case}.code_te_ref"), &reference);
        }
    }
    if let Some(codes) = record.get("e4m3.all_codes") {
        let values: Vec<f32> = codes.u8().into_iter().map(e4m3::decode).collect();
        record.compare_f32("e4m3.all_values", &values);
        let back: Vec<u8> = values.into_iter().map(e4m3::encode).collect();
        record.compare_bytes("e4m3.all_codes", &back);
    }
    if let Some(amax) = record.get("s_enc.amax") {
        for (key, q_max) in [
            ("s_enc.s_enc_448", NVFP4_Q_MAX),
            ("s_enc.s_enc_256", NVFP4_Q_MAX_256),
        ] {
            let scales: Vec<f32> = amax
                .f32()
                .into_iter()
                .map(|amax| tensor_encode_scale(amax, q_max))
                .collect();
            record.compare_f32(key, &scales);
        }
    }
    for case in record.cases_with("cuda_codes") {
        let x = Operand::new(&record.input(&format!("{case}.x")));
        let packed = x.quantize(Contraction::Columns, &ROW16);
        compare_packed(record, &format!("{case}.cuda_"), "", &packed);
    }
}

fn check_stochastic(record: &mut Record) {
    for case in record.cases_with("r8") {
        let x = record.input(&format!("{case}.x")).f32();
        let random = record.input(&format!("{case}.r8")).u8();
        let draw = |(&x, &r)| e2m1::encode_stochastic(x, r);
        let codes: Vec<u8> = x.iter().zip(&random).map(draw).collect();
        record.compare_bytes(&format!("{case}.code"), &codes);
    }
    for case in record.cases_with("rbits") {
        let x = Operand::new(&record.input(&format!("{case}.x")));
        // Scales are those of rounding to nearest.
        let packed = x.quantize(Contraction::Columns, &ROW16);
        record.compare_bytes(&format!("{case}.scales"), &packed.row_block_scales());
        record.compare_f32(&format!("{case}.amax"), &packed.tensor_scale().amax);
        let scaling = Nvfp4Scaling::new(packed.tensor_scale().amax[0], NVFP4_Q_MAX);
        let scales = packed.row_block_scales();
        let encode = |i: usize| scaling.block_encode_scale(scales[i / 16]);
        let scaled: Vec<f32> = x
            .to_f32()
            .iter()
            .enumerate()
            .map(|(i, v)| v * encode(i))
            .collect();
        record.compare_f32(&format!("{case}.scaled"), &scaled);
        let words = record.input(&format!("{case}.rbits")).i64();
        for (field, order) in [("codes_sw", [0, 1, 2, 3]), ("codes_ptx", [0, 2, 1, 3])] {
            let draw = |(i, &y): (usize, &f32)| {
                let bytes = words[i / 4].to_le_bytes();
                e2m1::encode_stochastic(y, bytes[order[i % 4]])
            };
            let codes: Vec<u8> = scaled.iter().enumerate().map(draw).collect();
            record.compare_bytes(&format!("{case}.{field}"), &packing::pack(&codes));
        }
    }
    for case in record.cases_with("in") {
        let inputs = record.input(&format!("{case}.in")).i64();
        let mut words = Vec::new();
        for input in inputs.chunks_exact(3) {
            let [seed, subsequence, offset] = [0, 1, 2].map(|i| halves(input[i].cast_unsigned()));
            for block in 0..4 {
                let offset = u64::from(offset[0]) | u64::from(offset[1]) << 32;
                let [low, high] = halves(offset.wrapping_add(block));
                let counter = [low, high, subsequence[0], subsequence[1]];
                words.extend(philox4x32_10(counter, seed).map(i64::from));
            }
        }
        record.compare_i64(&format!("{case}.out"), &words);
    }
}

/// Low and high half of a word.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}
