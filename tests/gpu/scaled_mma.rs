//! The GEMM of block-scaled MMAs on a device, the instruction emulated, against the oracle of
//! `cpu/`: tiling, staging, register layout, edges, epilogue.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensorOps;
use burn::tensor::{DType, TensorData};
use burn_nvfp4::cpu::gemm_f64;
use burn_nvfp4::format::{BlockScales, BlockShape, Format, PackedMatrix, TensorScale};
use burn_nvfp4::kernels::gemm::scaled_mma::{Mma, ScaledGemm, ScaledMmaError, Tiling, gemm};
use burn_nvfp4::kernels::{DeviceScales, PackedTensor};
use half::bf16;

use crate::device::{Base as Cube, Runtime};

type Float = <Cube as burn::tensor::backend::BackendTypes>::FloatTensorPrimitive;

/// A generator of test data: the high bits of a linear congruential sequence.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: u64) -> u8 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u8::try_from((self.0 >> 33) % n).unwrap()
    }
}

/// Codes of all values; scales drawn from `scales`.
fn packed((rows, k): (usize, usize), block: BlockShape, scales: &[u8], seed: u64) -> PackedMatrix {
    let mut draws = Draws(seed);
    let padded_k = k.next_multiple_of(16);
    // Beyond `k` the codes are +0.
    let mut code = |i: usize| {
        let draw = draws.below(16);
        if i % padded_k < k { draw } else { 0 }
    };
    let codes = (0..rows * padded_k / 2)
        .map(|i| code(2 * i) | code(2 * i + 1) << 4)
        .collect();
    let block_rows = match block {
        BlockShape::Row16 => rows,
        BlockShape::Tile16x16 => rows.div_ceil(16),
    };
    let count = u64::try_from(scales.len()).unwrap();
    let scales = (0..block_rows * padded_k / 16)
        .map(|_| scales[usize::from(draws.below(count))])
        .collect();
    PackedMatrix::from_parts(
        (rows, k),
        Format::Nvfp4 { block },
        codes,
        BlockScales::E4m3(scales),
        TensorScale::unit(),
    )
    .unwrap()
}

/// 0.5, 1, 2 and 4. Products are multiples of 1/16 up to 576, and any sum of up to 1820 of them is
/// exact in f32.
const POWERS: [u8; 4] = [0x30, 0x38, 0x40, 0x48];

fn all_scales() -> Vec<u8> {
    (0..=0x7E).collect()
}

fn upload(matrix: &PackedMatrix, scale_dtype: DType) -> PackedTensor<Runtime> {
    let device = Default::default();
    let ints = |data| crate::device::upload(data, &device);
    let words: Vec<u32> = matrix
        .codes()
        .chunks_exact(4)
        .map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    let BlockScales::E4m3(bytes) = matrix.block_scales() else {
        panic!("NVFP4 has E4M3 scales");
    };
    let row_words = matrix.padded_k() / 8;
    let row_blocks = matrix.padded_k() / 16;
    let shape = [bytes.len() / row_blocks, row_blocks];
    let scales = match scale_dtype {
        DType::U8 => TensorData::new(bytes.clone(), shape),
        _ => TensorData::new(bytes.iter().map(|&b| u32::from(b)).collect(), shape),
    };
    PackedTensor {
        rows: matrix.rows(),
        k: matrix.k(),
        padded_k: matrix.padded_k(),
        format: matrix.format(),
        codes: ints(TensorData::new(words, [matrix.rows(), row_words])),
        scales: DeviceScales::Bytes(ints(scales)),
        amax: floats(&[1.0]),
        q_max: 1.0,
    }
}

fn floats(values: &[f32]) -> Float {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Cube::float_from_data(data, &Default::default())
}

fn read(tensor: Float) -> Vec<f64> {
    let data = burn::tensor::try_read_sync(Cube::float_into_data(tensor))
        .expect("reading blocks here")
        .unwrap();
    data.iter::<f64>().collect()
}

/// How scales may be stored on this device.
fn scale_dtypes() -> Vec<DType> {
    let bytes = Cube::supports_dtype(&Default::default(), DType::U8);
    [DType::U32]
        .into_iter()
        .chain(bytes.then_some(DType::U8))
        .collect()
}

/// Tilings whose shared memory the device offers.
fn tilings() -> Vec<Tiling> {
    let mut tilings = vec![Tiling::SHALLOW, Tiling::SMALL];
    if cfg!(feature = "cuda") {
        tilings.push(Tiling::LARGE);
    }
    tilings
}

#[test]
fn sums_that_f32_holds_are_exact_over_tiles_stages_and_edges() {
    use BlockShape::{Row16, Tile16x16};
    let cases = [
        // Whole tiles, and more of them along k than there are stages.
        ((128, 128, 512), Row16, Row16),
        ((64, 192, 640), Row16, Tile16x16),
        // Edges of m, n and k; odd n; k of one block, and of odd multiples of 16, 32 and 64.
        ((1, 1, 16), Row16, Row16),
        ((130, 67, 80), Tile16x16, Row16),
        ((17, 200, 272), Tile16x16, Tile16x16),
        ((70, 33, 224), Row16, Row16),
        ((129, 9, 320), Row16, Tile16x16),
        ((5, 258, 7), Row16, Row16),
    ];
    for ((m, n, k), lhs_block, rhs_block) in cases {
        let lhs = packed((m, k), lhs_block, &POWERS, 1);
        let rhs = packed((n, k), rhs_block, &POWERS, 2);
        let expected = gemm_f64(&lhs, &rhs);
        for dtype in scale_dtypes() {
            let (lhs, rhs) = (upload(&lhs, dtype), upload(&rhs, dtype));
            for tiling in tilings() {
                // The emulation of a large tile is long to compile; the block shapes and how scales
                // are stored do not depend on the tiling.
                let first = dtype == DType::U32 && (lhs_block, rhs_block) == (Row16, Row16);
                if tiling == Tiling::LARGE && !first {
                    continue;
                }
                let gemm = ScaledGemm {
                    lhs: &lhs,
                    rhs: &rhs,
                    alpha: None,
                    bias: None,
                    out: DType::F32,
                };
                let got = read(gemm.launch(Mma::Emulated, tiling).unwrap());
                let first = got.iter().zip(&expected).position(|(got, y)| got != y);
                assert_eq!(
                    (got.len(), first),
                    (expected.len(), None),
                    "{m}x{n}x{k}, {lhs_block:?} x {rhs_block:?}, {dtype:?}, {tiling:?}"
                );
            }
        }
    }
}

#[test]
fn every_e4m3_scale_is_decoded() {
    // One row to a scale; k of one block, so that f32 holds each product.
    let scales = all_scales();
    let rows = scales.len();
    let codes = vec![0x21; rows * 8];
    let format = Format::Nvfp4 {
        block: BlockShape::Row16,
    };
    let lhs = BlockScales::E4m3(scales);
    let lhs =
        PackedMatrix::from_parts((rows, 16), format, codes, lhs, TensorScale::unit()).unwrap();
    let rhs = packed((3, 16), BlockShape::Row16, &POWERS, 3);
    let got = gemm(
        &upload(&lhs, DType::U32),
        &upload(&rhs, DType::U32),
        None,
        None,
        DType::F32,
        Mma::Emulated,
    );
    assert_eq!(read(got.unwrap()), gemm_f64(&lhs, &rhs));
}

#[test]
fn scales_of_any_size_round_once_per_block() {
    let (m, n, k) = (100, 75, 1552);
    let lhs = packed((m, k), BlockShape::Row16, &all_scales(), 4);
    let rhs = packed((n, k), BlockShape::Tile16x16, &all_scales(), 5);
    let sums = gemm_f64(&lhs, &rhs);
    let (alpha, bias) = (
        0.37_f32,
        (0..n).map(|j| j as f32 - 30.5).collect::<Vec<_>>(),
    );
    let magnitudes = gemm_f64(&without_signs(&lhs), &without_signs(&rhs));
    let got = gemm(
        &upload(&lhs, DType::U32),
        &upload(&rhs, DType::U32),
        Some(&floats(&[alpha])),
        Some(&floats(&bias)),
        DType::F32,
        Mma::Emulated,
    );
    // One rounding per block of 16, each of a partial sum that the magnitudes bound; then the
    // product and the sum of the epilogue.
    let roundings = (k.div_ceil(16) + 2) as f64;
    for (i, got) in read(got.unwrap()).into_iter().enumerate() {
        let bias = f64::from(bias[i % n]);
        let expected = sums[i] * f64::from(alpha) + bias;
        let bound = roundings * 2f64.powi(-24) * (magnitudes[i] * f64::from(alpha) + bias.abs());
        assert!(
            (got - expected).abs() <= bound,
            "{i}: {got}, expected {expected}"
        );
    }
}

fn without_signs(matrix: &PackedMatrix) -> PackedMatrix {
    PackedMatrix::from_parts(
        (matrix.rows(), matrix.k()),
        matrix.format(),
        matrix.codes().iter().map(|byte| byte & 0x77).collect(),
        matrix.block_scales().clone(),
        TensorScale::unit(),
    )
    .unwrap()
}

#[test]
fn half_outputs_are_the_f32_sums_rounded_once() {
    let device = Default::default();
    for (m, n, k) in [(33, 40, 96), (20, 31, 128)] {
        let lhs = packed((m, k), BlockShape::Row16, &POWERS, 6);
        let rhs = packed((n, k), BlockShape::Row16, &POWERS, 7);
        let sums = gemm_f64(&lhs, &rhs);
        let (lhs, rhs) = (upload(&lhs, DType::U32), upload(&rhs, DType::U32));
        for out in [DType::BF16, DType::F16] {
            let result = gemm(&lhs, &rhs, None, None, out, Mma::Emulated);
            if !Cube::supports_dtype(&device, out) {
                assert!(
                    matches!(result, Err(ScaledMmaError::Device { .. })),
                    "{result:?}"
                );
                continue;
            }
            let round = |sum: f64| match out {
                DType::BF16 => bf16::from_f64(sum).to_f64(),
                _ => half::f16::from_f64(sum).to_f64(),
            };
            let expected: Vec<f64> = sums.iter().copied().map(round).collect();
            assert_eq!(read(result.unwrap()), expected, "{m}x{n}x{k} to {out:?}");
        }
    }
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    let lhs = upload(&packed((4, 32), BlockShape::Row16, &POWERS, 8), DType::U32);
    let rhs = upload(&packed((4, 48), BlockShape::Row16, &POWERS, 9), DType::U32);
    let run = |lhs: &PackedTensor<Runtime>, rhs: &PackedTensor<Runtime>, bias: Option<&Float>| {
        gemm(lhs, rhs, None, bias, DType::F32, Mma::Emulated)
            .err()
            .map(|error| error.to_string())
    };
    assert_eq!(
        run(&lhs, &rhs, None).unwrap(),
        "the operands of a GEMM have contraction lengths 32 and 48"
    );
    assert_eq!(
        run(&lhs, &lhs, Some(&floats(&[1.0; 5]))).unwrap(),
        "bias: [5] F32, the operand asks for 4 contiguous elements of [F32]"
    );
    let mx = PackedTensor {
        format: Format::Mxfp4,
        ..lhs.clone()
    };
    assert_eq!(
        run(&mx, &lhs, None).unwrap(),
        "the block-scaled MMA multiplies NVFP4 operands with E4M3 scales, got Mxfp4"
    );
}

#[test]
fn a_device_without_the_instruction_says_so() {
    let lhs = upload(&packed((4, 32), BlockShape::Row16, &POWERS, 10), DType::U32);
    match gemm(&lhs, &lhs, None, None, DType::F32, Mma::Native) {
        Ok(got) => {
            let emulated = gemm(&lhs, &lhs, None, None, DType::F32, Mma::Emulated);
            assert_eq!(read(got), read(emulated.unwrap()));
        }
        Err(error) => {
            let line = error.to_string();
            assert!(
                line.ends_with("it needs CUDA with compute capability 12.x"),
                "{line}"
            );
        }
    }
}
