//! MS-EDEN (numerics §11): right in the mean, and closer than stochastic rounding.

use burn_nvfp4::cpu::{
    Contraction, MatrixView, decode_operand, dequantize, quantize, quantize_operand,
    random_hadamard,
};
use burn_nvfp4::format::scale::{EdenScaling, NVFP4_Q_MAX_256, eden_correction};
use burn_nvfp4::format::{BlockScales, PackedMatrix, e2m1, e4m3};
use burn_nvfp4::recipe::{
    BlockShape, OperandSpec, Rounding, ScaleRule, SignVector, Transform, presets,
};
use burn_nvfp4::rng::{RandomKey, Stream};

use crate::quantize::{normal, transpose};

const EDEN: OperandSpec = presets::QUARTET2.wgrad.lhs;
const STOCHASTIC: OperandSpec = presets::NVIDIA.dgrad.lhs;

const fn key(step: u64, stream: Stream) -> RandomKey {
    RandomKey {
        seed: 11,
        step,
        micro_batch: 0,
        stream,
    }
}

fn quantized(x: &[f32], rows: usize, cols: usize, key: RandomKey) -> PackedMatrix {
    let view = MatrixView::new(x, rows, cols).unwrap();
    quantize(view, Contraction::Columns, &EDEN, key).unwrap()
}

/// The values that a quantized matrix stands for, turned back and without padding.
fn unrotated(matrix: &PackedMatrix, cols: usize, key: RandomKey) -> Vec<f32> {
    let mut values = dequantize(matrix);
    // H is symmetric, so that its inverse is H, and the flips come after it.
    random_hadamard(&mut values, [0; 4]);
    let signs = key.signs();
    let rows = values.chunks(matrix.k());
    let flipped = rows.flat_map(|row| {
        let row = row.iter().take(cols).enumerate();
        row.map(move |(i, value)| {
            let negative = (signs[i % 128 / 32] >> (i % 32)) & 1 == 1;
            if negative { -value } else { *value }
        })
    });
    flipped.collect()
}

fn relative(x: &[f32], q: impl Iterator<Item = f64>) -> f64 {
    let energy: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let errors = x.iter().zip(q).map(|(&x, q)| (f64::from(x) - q).powi(2));
    errors.sum::<f64>() / energy
}

/// The error of the mean of `draws` quantizations under fresh keys.
fn error_of_mean(draws: u32, mut draw: impl FnMut(RandomKey) -> Vec<f32>, x: &[f32]) -> f64 {
    let mut sums = vec![0.0_f64; x.len()];
    for step in 0..draws {
        let values = draw(key(u64::from(step), Stream::Wgrad));
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += f64::from(value);
        }
    }
    relative(x, sums.into_iter().map(|sum| sum / f64::from(draws)))
}

/// Normal rows beside rows of other kinds: a small one, a one-sided one, one along a wave.
fn rows() -> (Vec<f32>, usize, usize) {
    let (rows, cols) = (8, 128);
    let mut x = normal(5, rows * cols);
    for (i, value) in x.iter_mut().enumerate() {
        match i / cols {
            0 => *value *= 0.01,
            1 => *value = value.abs(),
            2 => *value = (i as f32 * 0.1).sin() + 0.1 * *value,
            _ => {}
        }
    }
    (x, rows, cols)
}

/// Rounding to nearest behind the same rotations: what a biased method leaves.
fn nearest(x: &[f32], rows: usize, cols: usize, key: RandomKey) -> Vec<f32> {
    let mut rotated = x.to_vec();
    random_hadamard(&mut rotated, key.signs());
    let view = MatrixView::new(&rotated, rows, cols).unwrap();
    let plain = presets::NVIDIA.fprop.lhs;
    let packed = quantize(view, Contraction::Columns, &plain, key).unwrap();
    unrotated(&packed, cols, key)
}

#[test]
fn the_mean_of_many_draws_is_the_tensor() {
    let (x, rows, cols) = rows();
    let eden = |key| unrotated(&quantized(&x, rows, cols, key), cols, key);
    let draws = 4096;
    let (one, many) = (error_of_mean(1, eden, &x), error_of_mean(draws, eden, &x));
    // An unbiased estimate has 1/n of the variance, up to the spread of the estimate itself.
    let unbiased = one / f64::from(draws);
    println!("one draw {one:.3e}, {draws} draws {many:.3e}, 1/n of one {unbiased:.3e}");
    assert!(many < 1.2 * unbiased, "{many:e} is not {unbiased:e}");
    let biased = error_of_mean(draws, |key| nearest(&x, rows, cols, key), &x);
    println!("rounded to nearest {biased:.3e}");
    assert!(biased > 3.0 * unbiased, "{biased:e}");
}

/// A vector that is one large element has no random direction behind signs and a Hadamard matrix:
/// all its elements get one size, and what they lose in rounding they lose in every draw.
#[test]
fn a_lone_outlier_keeps_some_bias() {
    let mut x = normal(5, 128);
    x[3] = 40.0;
    let eden = |key| unrotated(&quantized(&x, 1, 128, key), 128, key);
    let (one, many) = (error_of_mean(1, eden, &x), error_of_mean(4096, eden, &x));
    println!("one draw {one:.3e}, 4096 draws {many:.3e}");
    assert!(many < 0.02 * one, "{many:e} of {one:e}");
}

#[test]
fn gradients_are_right_in_the_mean() {
    // dW = Xᵀ dY over 128 tokens, both operands quantized with the signs they share.
    let (tokens, d_input, d_output) = (128, 12, 10);
    let (x, dy) = (normal(1, tokens * d_input), normal(2, tokens * d_output));
    let exact: Vec<f32> = (0..d_input * d_output)
        .map(|i| {
            let (r, c) = (i / d_output, i % d_output);
            (0..tokens)
                .map(|t| x[t * d_input + r] * dy[t * d_output + c])
                .sum()
        })
        .collect();
    let product = |step| {
        let operand = |x: &[f32], cols, stream| {
            let view = MatrixView::new(x, tokens, cols).unwrap();
            quantize(view, Contraction::Rows, &EDEN, key(step, stream)).unwrap()
        };
        let lhs = dequantize(&operand(&x, d_input, Stream::WgradX));
        let rhs = dequantize(&operand(&dy, d_output, Stream::Wgrad));
        let dot = |r: &[f32], c: &[f32]| -> f32 { r.iter().zip(c).map(|(a, b)| a * b).sum() };
        let rows = lhs.chunks(tokens);
        rows.flat_map(|r| rhs.chunks(tokens).map(move |c| dot(r, c)))
            .collect::<Vec<_>>()
    };
    let draws = 2048;
    let one = error_of_mean(1, |key| product(key.step), &exact);
    let many = error_of_mean(draws, |key| product(key.step), &exact);
    println!("one draw {one:.3e}, {draws} draws {many:.3e}");
    assert!(many < 2.0 * one / f64::from(draws), "{many:e} of {one:e}");
}

#[test]
fn one_draw_errs_less_than_half_of_stochastic_rounding() {
    let (rows, cols) = (512, 1024);
    let x = normal(3, rows * cols);
    let eden = {
        let key = key(0, Stream::Wgrad);
        unrotated(&quantized(&x, rows, cols, key), cols, key)
    };
    let view = MatrixView::new(&x, rows, cols).unwrap();
    let packed = quantize(
        view,
        Contraction::Columns,
        &STOCHASTIC,
        key(0, Stream::Wgrad),
    );
    let stochastic = dequantize(&packed.unwrap());
    let error = |q: Vec<f32>| relative(&x, q.into_iter().map(f64::from));
    let (eden, stochastic) = (error(eden), error(stochastic));
    println!("MS-EDEN {eden:.4e}, stochastic rounding {stochastic:.4e}");
    assert!(eden < 0.55 * stochastic, "{eden:e} of {stochastic:e}");
}

/// numerics §11, step by step and one vector at a time.
fn by_the_letter(x: &[f32], key: RandomKey) -> (Vec<u8>, Vec<u8>, f32) {
    let mut rotated = x.to_vec();
    random_hadamard(&mut rotated, key.signs());
    let amax = rotated.iter().fold(0.0_f32, |amax, x| amax.max(x.abs()));
    let scaling = EdenScaling::new(amax);
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for (v, vector) in rotated.chunks(128).enumerate() {
        let mut sums = Vec::new();
        let mut blocks = Vec::new();
        for block in vector.chunks(16) {
            let scale = scaling.block_scale(block.iter().fold(0.0, |a: f32, x| a.max(x.abs())));
            let encode = scaling.block_encode_scale(scale);
            let (mut norm, mut overlap) = (0.0_f32, 0.0_f32);
            for x in block {
                let y = x * encode;
                let code = e2m1::encode_rne(y);
                codes.push(code);
                norm += y * y;
                overlap += y * e2m1::decode(code);
            }
            let weight = e4m3::decode(scale) * e4m3::decode(scale);
            sums.push([norm * weight, overlap * weight]);
            blocks.push(scale);
        }
        let sum = |which: usize| {
            let s: Vec<f32> = sums.iter().map(|sums| sums[which]).collect();
            let fours = [s[0] + s[4], s[1] + s[5], s[2] + s[6], s[3] + s[7]];
            (fours[0] + fours[2]) + (fours[1] + fours[3])
        };
        let correction = eden_correction(sum(0), sum(1));
        for (b, scale) in blocks.into_iter().enumerate() {
            let [r0, r1, r2, r3, ..] = key.block_bytes(amax, (v * 8 + b) as u64);
            let random = u32::from_le_bytes([r0, r1, r2, r3]) >> 12;
            scales.push(e4m3::encode_stochastic(
                e4m3::decode(scale) * correction,
                random,
            ));
        }
    }
    (codes, scales, amax)
}

#[test]
fn codes_and_scales_follow_the_text() {
    let x = normal(9, 5 * 256);
    for scale in [1.0, 1e-6, 3e4] {
        let x: Vec<f32> = x.iter().map(|x| x * scale).collect();
        let key = key(3, Stream::DgradWeight);
        let packed = quantized(&x, 5, 256, key);
        let (codes, scales, amax) = by_the_letter(&x, key);
        assert_eq!(burn_nvfp4::format::packing::unpack(packed.codes()), codes);
        assert_eq!(packed.block_scales(), &BlockScales::E4m3(scales));
        assert_eq!(packed.tensor_scale().amax, [amax]);
        assert_eq!(packed.tensor_scale().q_max, NVFP4_Q_MAX_256);
    }
}

#[test]
fn incomplete_vectors_are_completed_before_the_transform() {
    let (rows, cols) = (19, 200);
    let x = normal(6, rows * cols);
    let packed = quantized(&x, rows, cols, key(0, Stream::Wgrad));
    assert_eq!(
        (packed.rows(), packed.k(), packed.padded_k()),
        (rows, 256, 256)
    );
    let mut padded = vec![0.0; rows * 256];
    for row in 0..rows {
        padded[row * 256..][..cols].copy_from_slice(&x[row * cols..][..cols]);
    }
    assert_eq!(packed, quantized(&padded, rows, 256, key(0, Stream::Wgrad)));
    let turned = transpose(&x, rows, cols);
    let view = MatrixView::new(&turned, cols, rows).unwrap();
    let along_rows = quantize(view, Contraction::Rows, &EDEN, key(0, Stream::Wgrad)).unwrap();
    assert_eq!(packed, along_rows);
    let (values, _) =
        quantize_operand(view, Contraction::Rows, &EDEN, key(0, Stream::Wgrad)).unwrap();
    assert_eq!(values, decode_operand(&packed));
}

#[test]
fn the_operands_of_a_gemm_share_their_signs_and_nothing_else_does() {
    let signs = |step, stream| key(step, stream).signs();
    assert_eq!(signs(1, Stream::Dgrad), signs(1, Stream::DgradWeight));
    assert_eq!(signs(1, Stream::Wgrad), signs(1, Stream::WgradX));
    assert_ne!(signs(1, Stream::Dgrad), signs(1, Stream::Wgrad));
    assert_ne!(signs(1, Stream::Dgrad), signs(2, Stream::Dgrad));
    assert_ne!(signs(1, Stream::Dgrad), signs(1 << 32 | 1, Stream::Dgrad));
    let other_seed = RandomKey {
        seed: 12,
        ..key(1, Stream::Dgrad)
    };
    assert_ne!(signs(1, Stream::Dgrad), other_seed.signs());
}

#[test]
fn zeros_and_what_is_not_finite_have_scales() {
    let zeros = quantized(&[0.0; 128], 1, 128, key(0, Stream::Wgrad));
    assert!(dequantize(&zeros).iter().all(|&x| x == 0.0));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = normal(1, 256);
        x[5] = bad;
        let packed = quantized(&x, 2, 128, key(0, Stream::Wgrad));
        let BlockScales::E4m3(scales) = packed.block_scales() else {
            panic!("NVFP4 has E4M3 scales")
        };
        assert!(scales.iter().all(|&scale| scale < 0x7F), "{scales:?}");
    }
}

#[test]
fn eden_goes_with_the_random_transform_alone() {
    let spec = |block, scale, rounding, transform| OperandSpec::Nvfp4 {
        block,
        scale,
        rounding,
        transform,
    };
    let (row, rne) = (BlockShape::Row16, Rounding::NearestEven);
    let fixed = Transform::Hadamard {
        signs: SignVector::PLAIN,
    };
    let view = MatrixView::new(&[1.0_f32; 16], 1, 16).unwrap();
    let quantized = |spec| quantize(view, Contraction::Columns, &spec, key(0, Stream::Dgrad));
    assert!(quantized(spec(row, ScaleRule::Eden, rne, Transform::RandomHadamard)).is_ok());
    for wrong in [
        spec(row, ScaleRule::Eden, rne, Transform::None),
        spec(row, ScaleRule::Eden, rne, fixed),
        spec(
            row,
            ScaleRule::Eden,
            Rounding::Stochastic,
            Transform::RandomHadamard,
        ),
        spec(
            BlockShape::Tile16x16,
            ScaleRule::Eden,
            rne,
            Transform::RandomHadamard,
        ),
        spec(row, ScaleRule::Tensor, rne, Transform::RandomHadamard),
        spec(row, ScaleRule::Row, rne, Transform::RandomHadamard),
        presets::MXFP4
            .wgrad
            .lhs
            .with_transform(Transform::RandomHadamard),
    ] {
        assert!(quantized(wrong).is_err(), "{wrong:?}");
    }
}
