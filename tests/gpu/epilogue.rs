//! The pass behind a GEMM and the order of block scales, on a device: the bits of `cpu` and
//! `format`.

use burn::prelude::*;
use burn::tensor::{DType, TensorPrimitive};
use burn_nvfp4::cpu::Alpha;
use burn_nvfp4::format::swizzle::swizzle;
use burn_nvfp4::format::{BlockShape, Format};
use burn_nvfp4::kernels::gemm::epilogue::{Scale, finish};
use burn_nvfp4::kernels::swizzle::swizzle_scales;
use burn_nvfp4::kernels::{DeviceScales, PackedTensor};

use crate::turns::Plain;

/// Deterministic values over a few binades, of both signs.
fn values(len: usize, salt: u64) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
        })
        .collect()
}

fn floats<const D: usize>(
    values: &[f32],
    shape: [usize; D],
) -> <Plain as burn::tensor::backend::BackendTypes>::FloatTensorPrimitive {
    let data = TensorData::new(values.to_vec(), shape);
    crate::device::upload(data, &Default::default())
}

fn words(
    values: &[u32],
    shape: [usize; 2],
) -> <Plain as burn::tensor::backend::BackendTypes>::IntTensorPrimitive {
    let data = TensorData::new(values.to_vec(), shape);
    crate::device::upload(data, &Default::default())
}

fn finished(
    m: usize,
    n: usize,
    alpha: Option<&Alpha>,
    bias: Option<&[f32]>,
    out: DType,
) -> (Vec<f32>, Vec<f32>) {
    let mut expected = values(m * n, 1);
    let sums = floats(&expected, [m, n]);
    let scale = match alpha {
        None => Scale::None,
        Some(Alpha::Tensor(alpha)) => Scale::Tensor(floats(&[*alpha], [1])),
        Some(Alpha::Rows { factor, lhs, rhs }) => Scale::Rows {
            factor: *factor,
            lhs: floats(lhs, [lhs.len()]),
            rhs: floats(rhs, [rhs.len()]),
        },
    };
    if let Some(alpha) = alpha {
        alpha.apply(&mut expected, n);
    }
    if let Some(bias) = bias {
        for row in expected.chunks_exact_mut(n) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }
    let out = finish(sums, scale, bias.map(|bias| floats(bias, [n])), out);
    let out = Tensor::<Plain, 2>::from_primitive(TensorPrimitive::Float(out));
    (out.into_data().iter::<f32>().collect(), expected)
}

#[test]
fn sums_are_finished_in_the_order_of_the_cpu() {
    for (m, n) in [(1, 1), (3, 5), (7, 6), (5, 64), (33, 20)] {
        let (lhs, rhs, bias) = (values(m, 2), values(n, 3), values(n, 4));
        let rows = |lhs: &[f32], rhs: &[f32]| {
            Some(Alpha::Rows {
                factor: 1.0 / (2688.0 * 448.0),
                lhs: lhs.to_vec(),
                rhs: rhs.to_vec(),
            })
        };
        for alpha in [
            None,
            Some(Alpha::Tensor(0.3)),
            rows(&lhs, &rhs),
            rows(&lhs, &rhs[..1]),
            rows(&lhs[..1], &rhs),
        ] {
            for bias in [None, Some(bias.as_slice())] {
                let (got, expected) = finished(m, n, alpha.as_ref(), bias, DType::F32);
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                let case = format!("{m}x{n}, {alpha:?}, bias {}", bias.is_some());
                assert_eq!(bits(&got), bits(&expected), "{case}");
            }
        }
    }
}

#[test]
fn sums_are_rounded_once() {
    // The nearest value, or, where the conversion may round either way (WGSL), a neighbour.
    for (dtype, spacing) in [
        (DType::BF16, 2.0_f32.powi(-7)),
        (DType::F16, 2.0_f32.powi(-10)),
    ] {
        if !Plain::supports_dtype(&Default::default(), dtype) {
            continue;
        }
        let bias = values(20, 4);
        let (got, expected) = finished(9, 20, Some(&Alpha::Tensor(0.3)), Some(&bias), dtype);
        for (got, expected) in got.iter().zip(expected) {
            let ulp = spacing * expected.abs();
            assert!(
                (got - expected).abs() <= ulp,
                "{dtype:?}: {got}, {expected}"
            );
        }
    }
}

#[test]
fn scales_are_swizzled_as_on_the_cpu() {
    for (rows, k) in [
        (1_usize, 16_usize),
        (128, 64),
        (130, 80),
        (300, 336),
        (48, 2048),
    ] {
        for block in [BlockShape::Row16, BlockShape::Tile16x16] {
            let block_rows = match block {
                BlockShape::Row16 => 1,
                BlockShape::Tile16x16 => 16,
            };
            let (stored, cols) = (rows.div_ceil(block_rows), k / 16);
            let scales: Vec<u32> = (0..stored * cols).map(|i| i as u32 * 37 % 127).collect();
            let linear: Vec<u8> = (0..rows)
                .flat_map(|row| {
                    let start = row / block_rows * cols;
                    scales[start..start + cols].iter().map(|&s| s as u8)
                })
                .collect();
            let operand = PackedTensor {
                rows,
                k,
                padded_k: k,
                format: Format::Nvfp4 { block },
                codes: words(&[0], [1, 1]),
                scales: DeviceScales::Bytes(words(&scales, [stored, cols])),
                amax: floats(&[1.0], [1]),
                q_max: 2688.0,
            };
            let swizzled = swizzle_scales(&operand).unwrap();
            let swizzled = Tensor::<Plain, 1, Int>::from_primitive(swizzled).into_data();
            let bytes: Vec<u8> = swizzled.iter::<u32>().flat_map(u32::to_le_bytes).collect();
            let case = format!("{rows}x{k}, {block:?}");
            assert_eq!(bytes, swizzle(&linear, rows, cols).unwrap(), "{case}");
        }
    }
}
