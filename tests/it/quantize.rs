//! Properties of quantization that hold for every format, and its error on Gaussian data.

use burn_nvfp4::QuantizeError;
use burn_nvfp4::cpu::{
    Alpha, Contraction, Element, MatrixView, decode_operand, dequantize, gemm, gemm_alpha,
    gemm_f64, hadamard, quantize, quantize_operand,
};
use burn_nvfp4::format::scale::{FP8_Q_MAX, NVFP4_Q_MAX, Nvfp4Scaling, tensor_encode_scale};
use burn_nvfp4::format::{BlockScales, PackedMatrix, e2m1, e4m3, e8m0, packing};
use burn_nvfp4::recipe::{
    BlockError, BlockShape, E8m0Rule, ErrorArithmetic, Fp8Scaling, OperandSpec, Rounding,
    ScaleBound, ScaleRule, Transform, presets,
};
use burn_nvfp4::rng::{RandomKey, Stream, philox4x32_10};
use half::{bf16, f16};
use proptest::prelude::*;
use tests::tolerance::{GEMM_F32_OF_LARGEST, RELATIVE_MSE, first_beyond};

const KEY: RandomKey = RandomKey {
    seed: 7,
    step: 3,
    micro_batch: 0,
    stream: Stream::Dgrad,
};
const ROW16: OperandSpec = nvfp4(BlockShape::Row16, ScaleRule::Tensor);
const TILE: OperandSpec = nvfp4(BlockShape::Tile16x16, ScaleRule::Tensor);
const STOCHASTIC: OperandSpec = ROW16.with_rounding(Rounding::Stochastic);
const MAE_256: ScaleRule = four_over_six(ScaleBound::E4m3At256, BlockError::Mae);
const MXFP4: OperandSpec = mxfp4(E8m0Rule::Floor);
const EDEN: OperandSpec = presets::QUARTET2.wgrad.lhs;

const fn nvfp4(block: BlockShape, scale: ScaleRule) -> OperandSpec {
    let (rounding, transform) = (Rounding::NearestEven, Transform::None);
    OperandSpec::Nvfp4 {
        block,
        scale,
        rounding,
        transform,
    }
}

const fn four_over_six(bound: ScaleBound, error: BlockError) -> ScaleRule {
    ScaleRule::FourOverSix {
        bound,
        error,
        arithmetic: ErrorArithmetic::Exact,
    }
}

const fn mxfp4(scale: E8m0Rule) -> OperandSpec {
    let (rounding, transform) = (Rounding::NearestEven, Transform::None);
    OperandSpec::Mxfp4 {
        scale,
        rounding,
        transform,
    }
}

const fn mxfp8(scale: E8m0Rule) -> OperandSpec {
    OperandSpec::Mxfp8 { scale }
}

const fn fp8(scaling: Fp8Scaling) -> OperandSpec {
    OperandSpec::Fp8 { scaling }
}

/// One operand of every kind.
const SPECS: [OperandSpec; 18] = [
    EDEN,
    ROW16,
    TILE,
    STOCHASTIC,
    ROW16.with_hadamard(),
    STOCHASTIC.with_hadamard(),
    TILE.with_rounding(Rounding::Stochastic),
    nvfp4(BlockShape::Row16, ScaleRule::Row),
    nvfp4(BlockShape::Row16, MAE_256),
    nvfp4(
        BlockShape::Tile16x16,
        four_over_six(ScaleBound::E4m3At448, BlockError::Mse),
    ),
    MXFP4,
    mxfp4(E8m0Rule::RoundUp).with_rounding(Rounding::Stochastic),
    MXFP4.with_hadamard(),
    mxfp8(E8m0Rule::Floor),
    mxfp8(E8m0Rule::RoundUp),
    fp8(Fp8Scaling::Tensor),
    fp8(Fp8Scaling::Row128),
    fp8(Fp8Scaling::Tile128x128),
];

fn quantized<E: Element>(x: &[E], rows: usize, cols: usize, spec: &OperandSpec) -> PackedMatrix {
    let view = MatrixView::new(x, rows, cols).unwrap();
    quantize(view, Contraction::Columns, spec, KEY).unwrap()
}

/// One code per byte, whatever the format.
fn codes(matrix: &PackedMatrix) -> Vec<u8> {
    match matrix.format().code_bits() {
        4 => packing::unpack(matrix.codes()),
        _ => matrix.codes().to_vec(),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub(crate) fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols)
        .map(|i| x[i % rows * cols + i / rows])
        .collect()
}

/// Independent N(0, 1) numbers, rounded to bf16: Box-Muller on Philox words.
pub(crate) fn normal(seed: u32, n: usize) -> Vec<f32> {
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    let pair = |u: u32, v: u32| {
        let (radius, angle) = (
            (-2.0 * unit(u).ln()).sqrt(),
            std::f64::consts::TAU * unit(v),
        );
        [radius * angle.cos(), radius * angle.sin()]
    };
    let blocks = (0u32..).flat_map(|block| {
        let [a, b, c, d] = philox4x32_10([block, 0, 0, 0], [seed, 0]);
        [pair(a, b), pair(c, d)]
    });
    blocks
        .flatten()
        .take(n)
        .map(|value| bf16::from_f64(value).to_f32())
        .collect()
}

/// A matrix of up to 150 x 150, sizes that are no multiple of anything included.
fn matrix() -> impl Strategy<Value = (Vec<f32>, usize, usize)> {
    (1..150usize, 1..150usize, any::<u32>(), 0..4u8).prop_map(|(rows, cols, seed, kind)| {
        let mut x = normal(seed, rows * cols);
        for (i, value) in x.iter_mut().enumerate() {
            match kind {
                0 => {}
                1 if i % 7 == 0 => *value = 0.0,
                2 if i % 61 == 0 => *value *= 100.0,
                // More mantissa bits than bf16 has.
                _ => *value *= 1.1,
            }
        }
        (x, rows, cols)
    })
}

fn any_spec() -> impl Strategy<Value = OperandSpec> {
    prop::sample::select(SPECS.to_vec())
}

proptest! {
    #[test]
    fn the_negative_has_the_same_codes_with_other_signs(
        (x, rows, cols) in matrix(), spec in any_spec()
    ) {
        // Behind a transform, a sum of +0 and -0 is +0 either way.
        prop_assume!(spec.transform() == Transform::None);
        let negative: Vec<f32> = x.iter().map(|value| -value).collect();
        let (plus, minus) =
            (quantized(&x, rows, cols, &spec), quantized(&negative, rows, cols, &spec));
        prop_assert_eq!(plus.block_scales(), minus.block_scales());
        prop_assert_eq!(plus.tensor_scale(), minus.tensor_scale());
        let sign = 1 << (plus.format().code_bits() - 1);
        let padded_k = plus.padded_k();
        for (i, (p, m)) in codes(&plus).into_iter().zip(codes(&minus)).enumerate() {
            let expected = if i % padded_k < cols { p ^ sign } else { p };
            prop_assert_eq!(expected, m, "element {}", i);
        }
    }

    #[test]
    fn a_power_of_two_changes_no_code(
        (x, rows, cols) in matrix(), spec in any_spec(), exponent in -20..20i32
    ) {
        // The tensor amax stands in the random counter: stochastic codes are others by design.
        prop_assume!(!spec.is_random());
        let scaled: Vec<f32> = x.iter().map(|value| value * 2f32.powi(exponent)).collect();
        let one = quantized(&x, rows, cols, &spec);
        let other = quantized(&scaled, rows, cols, &spec);
        prop_assert_eq!(one.codes(), other.codes());
        if let BlockScales::E4m3(scales) = one.block_scales() {
            prop_assert_eq!(&BlockScales::E4m3(scales.clone()), other.block_scales());
        }
    }

    #[test]
    fn the_fused_path_has_the_same_bits(
        (x, rows, cols) in matrix(), spec in any_spec(), along_rows in any::<bool>()
    ) {
        let along = if along_rows { Contraction::Rows } else { Contraction::Columns };
        let view = MatrixView::new(&x, rows, cols).unwrap();
        let packed = quantize(view, along, &spec, KEY).unwrap();
        let (values, tensor_scale) = quantize_operand(view, along, &spec, KEY).unwrap();
        prop_assert_eq!(bits(&values), bits(&decode_operand(&packed)));
        prop_assert_eq!(&tensor_scale, packed.tensor_scale());
    }

    #[test]
    fn contraction_over_rows_is_that_of_the_transpose(
        (x, rows, cols) in matrix(), spec in any_spec()
    ) {
        let view = MatrixView::new(&x, rows, cols).unwrap();
        let along_rows = quantize(view, Contraction::Rows, &spec, KEY).unwrap();
        let transposed = transpose(&x, rows, cols);
        prop_assert_eq!(along_rows, quantized(&transposed, cols, rows, &spec));
    }

    #[test]
    fn a_transposable_matrix_is_its_own_transpose(
        (x, rows, cols) in matrix(), spec in any_spec()
    ) {
        let packed = quantized(&x, rows, cols, &spec);
        if spec.is_transposable() {
            let view = MatrixView::new(&x, rows, cols).unwrap();
            let other = quantize(view, Contraction::Rows, &spec, KEY).unwrap();
            prop_assert_eq!(packed.transpose().unwrap(), other);
        }
    }

    #[test]
    fn zeros_at_the_edge_change_nothing((x, rows, cols) in matrix(), spec in any_spec()) {
        // A row-scaled operand has one amax more per row; its codes are the same all the same.
        let packed = quantized(&x, rows, cols, &spec);
        let (more_rows, padded_k) = (rows.next_multiple_of(128), packed.padded_k());
        let mut padded = vec![0.0; more_rows * padded_k];
        for row in 0..rows {
            padded[row * padded_k..][..cols].copy_from_slice(&x[row * cols..][..cols]);
        }
        let explicit = quantized(&padded, more_rows, padded_k, &spec);
        prop_assert_eq!(packed.codes(), &explicit.codes()[..packed.codes().len()]);
        let scales = packed.row_block_scales();
        prop_assert_eq!(&scales[..], &explicit.row_block_scales()[..scales.len()]);
    }

    #[test]
    fn the_element_type_does_not_matter((x, rows, cols) in matrix(), spec in any_spec()) {
        let short: Vec<bf16> = x.iter().map(|&value| bf16::from_f32(value)).collect();
        let wide: Vec<f32> = short.iter().map(|value| value.to_f32()).collect();
        let expected = quantized(&wide, rows, cols, &spec);
        prop_assert_eq!(&quantized(&short, rows, cols, &spec), &expected);
        let double: Vec<f64> = wide.iter().map(|&value| f64::from(value)).collect();
        prop_assert_eq!(&quantized(&double, rows, cols, &spec), &expected);
        let half: Vec<f16> = wide.iter().map(|&value| f16::from_f32(value)).collect();
        let half_wide: Vec<f32> = half.iter().map(|value| value.to_f32()).collect();
        let narrow = quantized(&half, rows, cols, &spec);
        prop_assert_eq!(narrow, quantized(&half_wide, rows, cols, &spec));
    }

    #[test]
    fn codes_and_scales_follow_the_formula_block_by_block(
        (x, rows, cols) in matrix(), spec in any_spec()
    ) {
        if let Some(expected) = codes_by_formula(&x, rows, cols, &spec) {
            let packed = quantized(&x, rows, cols, &spec);
            let got = codes(&packed);
            for (i, expected) in expected.into_iter().enumerate() {
                let (row, col) = (i / cols, i % cols);
                prop_assert_eq!(got[row * packed.padded_k() + col], expected, "({}, {})", row, col);
            }
        }
    }

    #[test]
    fn a_stochastic_code_is_one_of_the_two_neighbours((x, rows, cols) in matrix()) {
        let packed = quantized(&x, rows, cols, &STOCHASTIC);
        let nearest = quantized(&x, rows, cols, &ROW16);
        prop_assert_eq!(packed.block_scales(), nearest.block_scales());
        let (amax, scales) = (packed.tensor_scale().amax[0], packed.row_block_scales());
        let scaling = Nvfp4Scaling::new(amax, NVFP4_Q_MAX);
        let (padded_k, got) = (packed.padded_k(), codes(&packed));
        for (i, value) in x.iter().enumerate() {
            let (row, col) = (i / cols, i % cols);
            let y = value * scaling.block_encode_scale(scales[(row * padded_k + col) / 16]);
            let code = got[row * padded_k + col];
            prop_assert_eq!(code & 8 != 0, y.is_sign_negative());
            let below = (0..8).rev().find(|&code| e2m1::decode(code) <= y.abs()).unwrap();
            prop_assert!(code & 7 == below || code & 7 == below + 1, "{} became {}", y, code);
        }
    }

    #[test]
    fn equal_keys_draw_equal_bits_and_others_do_not((x, rows, cols) in matrix(), other in 1..9u64) {
        prop_assume!(rows * cols > 2000);
        let view = MatrixView::new(&x, rows, cols).unwrap();
        let draw = |key| quantize(view, Contraction::Columns, &STOCHASTIC, key).unwrap();
        let first = draw(KEY);
        prop_assert_eq!(&draw(KEY), &first);
        for key in [
            RandomKey { seed: KEY.seed + other, ..KEY },
            RandomKey { seed: KEY.seed + (other << 32), ..KEY },
            RandomKey { micro_batch: u32::try_from(other).unwrap(), ..KEY },
            RandomKey { step: KEY.step + other, ..KEY },
            RandomKey { step: KEY.step + (other << 32), ..KEY },
            RandomKey { stream: Stream::Wgrad, ..KEY },
            RandomKey { stream: Stream::Other(0), ..KEY },
        ] {
            prop_assert!(draw(key).codes() != first.codes(), "{:?}", key);
        }
    }

    #[test]
    fn an_f32_gemm_is_the_exact_one_up_to_summation(
        seed in any::<u32>(), (m, n, k) in (1..40usize, 1..40usize, 1..200usize),
        lhs in any_spec(), rhs in any_spec(),
    ) {
        let (x, w) = (normal(seed, m * k), normal(!seed, n * k));
        prop_assume!(lhs.transform() == rhs.transform());
        let (a, b) = (quantized(&x, m, k, &lhs), quantized(&w, n, k, &rhs));
        // The bound is for so many terms; a rotated operand may have more.
        prop_assume!(a.padded_k() == b.padded_k() && a.padded_k() <= 208);
        let alpha = gemm_alpha(a.tensor_scale(), b.tensor_scale());
        let y = gemm(&decode_operand(&a), &decode_operand(&b), m, n, a.padded_k(), &alpha);
        let y: Vec<f64> = y.into_iter().map(f64::from).collect();
        // The exact sums with the two decode scales, in f64.
        let scale = |matrix: &PackedMatrix, row| {
            let scale = matrix.tensor_scale();
            f64::from(scale.row_amax(row)) / f64::from(scale.q_max)
        };
        let sums = gemm_f64(&a, &b).into_iter().enumerate();
        let exact: Vec<f64> = sums.map(|(i, y)| y * scale(&a, i / n) * scale(&b, i % n)).collect();
        prop_assert_eq!(first_beyond(&y, &exact, GEMM_F32_OF_LARGEST, 0.0), None);
    }
}

/// Codes of the formats without a rule of their own in `format::scale`, by a search for the block
/// of each element; `None` for the formats that the golden files cover.
fn codes_by_formula(x: &[f32], rows: usize, cols: usize, spec: &OperandSpec) -> Option<Vec<u8>> {
    let (block_rows, block_cols) = match spec {
        OperandSpec::Mxfp4 {
            rounding: Rounding::NearestEven,
            transform: Transform::None,
            ..
        }
        | OperandSpec::Mxfp8 { .. } => (1, 32),
        OperandSpec::Fp8 {
            scaling: Fp8Scaling::Row128,
        } => (1, 128),
        OperandSpec::Fp8 {
            scaling: Fp8Scaling::Tile128x128,
        } => (128, 128),
        OperandSpec::Fp8 {
            scaling: Fp8Scaling::Tensor,
        } => (rows, cols),
        OperandSpec::HighPrecision | OperandSpec::Nvfp4 { .. } | OperandSpec::Mxfp4 { .. } => {
            return None;
        }
    };
    let block_amax = |row: usize, col: usize| {
        let (row, col) = (row / block_rows * block_rows, col / block_cols * block_cols);
        let mut amax = 0.0_f32;
        for r in row..rows.min(row + block_rows) {
            for c in col..cols.min(col + block_cols) {
                amax = amax.max(x[r * cols + c].abs());
            }
        }
        amax
    };
    let byte = |rule: &E8m0Rule, amax, max| match rule {
        E8m0Rule::Floor => e8m0::floor(amax, max),
        E8m0Rule::RoundUp => e8m0::round_up(amax, max),
    };
    let code = |row: usize, col: usize| {
        let (value, amax) = (x[row * cols + col], block_amax(row, col));
        match spec {
            OperandSpec::Mxfp4 { scale, .. } => {
                e2m1::encode_rne(value / e8m0::decode(byte(scale, amax, e2m1::MAX)))
            }
            OperandSpec::Mxfp8 { scale } => {
                e4m3::encode(value / e8m0::decode(byte(scale, amax, e4m3::MAX)))
            }
            OperandSpec::Fp8 { .. } | OperandSpec::Nvfp4 { .. } | OperandSpec::HighPrecision => {
                e4m3::encode(value * tensor_encode_scale(amax, FP8_Q_MAX))
            }
        }
    };
    Some((0..rows * cols).map(|i| code(i / cols, i % cols)).collect())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let (rows, cols) = (300, 1000);
    let x = normal(1, rows * cols);
    let view = MatrixView::new(&x, rows, cols).unwrap();
    for spec in SPECS {
        for along in [Contraction::Columns, Contraction::Rows] {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                pool.install(|| {
                    let packed = quantize(view, along, &spec, KEY).unwrap();
                    (bits(&dequantize(&packed)), packed)
                })
            };
            let single = run(1);
            assert!(run(2) == single && run(5) == single, "{spec:?}, {along:?}");
        }
    }
}

#[test]
fn the_mean_of_many_draws_follows_the_law_of_eight_bits() {
    // One block, its amax 6 so that the block scale is 448 and elements are scaled by one.
    let y: Vec<f32> = (0..16u8).map(|i| 6.0 - f32::from(i) * 0.397).collect();
    let draws = 20_000u32;
    let mut sums = [0.0_f64; 16];
    for seed in 0..draws {
        let key = RandomKey {
            seed: u64::from(seed),
            ..KEY
        };
        let view = MatrixView::new(&y, 1, 16).unwrap();
        let packed = quantize(view, Contraction::Columns, &STOCHASTIC, key).unwrap();
        for (sum, code) in sums.iter_mut().zip(codes(&packed)) {
            *sum += f64::from(e2m1::decode(code));
        }
    }
    for (&y, sum) in y.iter().zip(sums) {
        let below = (0..8u8)
            .rev()
            .find(|&code| e2m1::decode(code) <= y)
            .unwrap();
        let low = f64::from(e2m1::decode(below));
        let step = if y < 2.0 {
            0.5
        } else if y < 4.0 {
            1.0
        } else {
            2.0
        };
        let up = (256.0 * (f64::from(y) - low) / step).floor() / 256.0;
        let mean = sum / f64::from(draws);
        // Five standard deviations of a mean of Bernoulli draws.
        let bound = 5.0 * step * (up * (1.0 - up) / f64::from(draws)).sqrt();
        assert!(
            (mean - (low + up * step)).abs() <= bound,
            "{y}: mean {mean}, {low} + {up} * {step}"
        );
    }
}

#[test]
fn specs_without_arithmetic_are_errors() {
    let view = MatrixView::new(&[1.0_f32; 16], 1, 16).unwrap();
    let error = |spec| quantize(view, Contraction::Columns, &spec, KEY).unwrap_err();
    assert_eq!(
        error(OperandSpec::HighPrecision),
        QuantizeError::HighPrecision
    );
    let row_tile = nvfp4(BlockShape::Tile16x16, ScaleRule::Row);
    assert!(matches!(error(row_tile), QuantizeError::Unsupported { .. }));
    let rotated = nvfp4(BlockShape::Row16, MAE_256).with_hadamard();
    assert!(matches!(error(rotated), QuantizeError::Unsupported { .. }));
}

#[test]
fn empty_matrices_quantize_to_nothing() {
    for spec in SPECS {
        for (rows, cols) in [(0, 16), (3, 0), (0, 0)] {
            let packed = quantized::<f32>(&[], rows, cols, &spec);
            assert_eq!(
                (packed.rows(), packed.k(), packed.codes().len()),
                (rows, spec.packed_k(cols), 0)
            );
            assert!(dequantize(&packed).is_empty() && decode_operand(&packed).is_empty());
        }
    }
}

#[test]
fn row_scales_are_applied_after_the_gemm_as_an_outer_product() {
    let (m, n, k) = (3, 2, 32);
    let (x, w) = (normal(3, m * k), normal(4, n * k));
    let a = quantized(&x, m, k, &nvfp4(BlockShape::Row16, ScaleRule::Row));
    let b = quantized(&w, n, k, &ROW16);
    let alpha = gemm_alpha(a.tensor_scale(), b.tensor_scale());
    let Alpha::Rows { factor, lhs, rhs } = &alpha else {
        panic!("row scales give row factors")
    };
    assert_eq!((*factor, lhs.len(), rhs.len()), (1.0 / 7_225_344.0, m, 1));
    let mut sums = vec![1.0_f32; m * n];
    alpha.apply(&mut sums, n);
    assert_eq!(sums[2], factor * (lhs[1] * rhs[0]));
}

/// numerics §10: relative MSE on N(0, 1), rounded to bf16.
const REFERENCE_ERRORS: [(&str, OperandSpec, f64); 14] = [
    ("NVFP4 1x16 RNE", ROW16, 9.045e-3),
    ("NVFP4 16x16 RNE", TILE, 1.2392e-2),
    ("NVFP4 1x16 SR", STOCHASTIC, 1.8878e-2),
    ("NVFP4 RHT + 1x16 RNE", ROW16.with_hadamard(), 9.041e-3),
    (
        "NVFP4 4/6 MAE 256",
        nvfp4(BlockShape::Row16, MAE_256),
        7.796e-3,
    ),
    (
        "NVFP4 4/6 MAE 448",
        nvfp4(
            BlockShape::Row16,
            four_over_six(ScaleBound::E4m3At448, BlockError::Mae),
        ),
        7.795e-3,
    ),
    (
        "NVFP4 4/6 MSE 256",
        nvfp4(
            BlockShape::Row16,
            four_over_six(ScaleBound::E4m3At256, BlockError::Mse),
        ),
        7.561e-3,
    ),
    (
        "NVFP4 4/6 MSE 448",
        nvfp4(
            BlockShape::Row16,
            four_over_six(ScaleBound::E4m3At448, BlockError::Mse),
        ),
        7.564e-3,
    ),
    (
        "NVFP4 4/6 16x16 MAE 256",
        nvfp4(BlockShape::Tile16x16, MAE_256),
        1.2400e-2,
    ),
    ("MXFP4 floor", MXFP4, 1.3197e-2),
    ("MXFP4 round-up", mxfp4(E8m0Rule::RoundUp), 1.3309e-2),
    ("MXFP8 floor", mxfp8(E8m0Rule::Floor), 8.587e-4),
    ("MXFP8 round-up", mxfp8(E8m0Rule::RoundUp), 7.107e-4),
    ("FP8 per tensor", fp8(Fp8Scaling::Tensor), 7.019e-4),
];

#[test]
fn errors_on_gaussian_data_agree_with_the_reference() {
    // Four matrices of 2048 x 2048: as many elements as the reference had, and a spread.
    let (size, n_seeds) = (2048, 4);
    let matrices: Vec<Vec<f32>> = (0..n_seeds).map(|seed| normal(seed, size * size)).collect();
    println!(
        "{:<24} {:>10} {:>10} {:>9} {:>8}",
        "format", "reference", "mean", "off by", "spread"
    );
    let mut beyond = Vec::new();
    for (name, spec, reference) in REFERENCE_ERRORS {
        let errors: Vec<f64> = matrices
            .iter()
            .map(|x| relative_mse(x, size, &spec))
            .collect();
        let mean = errors.iter().sum::<f64>() / f64::from(n_seeds);
        let (low, high) = errors
            .iter()
            .fold((f64::MAX, 0.0), |(low, high): (f64, f64), &error| {
                (low.min(error), high.max(error))
            });
        let off = mean / reference - 1.0;
        println!(
            "{name:<24} {reference:>10.4e} {mean:>10.4e} {:>8.3}% {:>7.3}%",
            100.0 * off,
            100.0 * (high - low) / mean
        );
        if off.abs() > RELATIVE_MSE {
            beyond.push(name);
        }
    }
    assert!(beyond.is_empty(), "beyond {RELATIVE_MSE}: {beyond:?}");
}

/// `|x - q|² / |x|²`, in the domain in which `x` is quantized.
fn relative_mse(x: &[f32], size: usize, spec: &OperandSpec) -> f64 {
    let q = dequantize(&quantized(x, size, size, spec));
    let mut x = x.to_vec();
    if let Transform::Hadamard { signs } = spec.transform() {
        hadamard(&mut x, signs);
    }
    let (mut error, mut energy) = (0.0, 0.0);
    for (&x, &q) in x.iter().zip(&q) {
        let (x, q) = (f64::from(x), f64::from(q));
        error += (x - q) * (x - q);
        energy += x * x;
    }
    error / energy
}
