//! What the kernels around a GEMM make: decoded operands, and the factor after it.

use burn::tensor::{DType, TensorData};
use burn_nvfp4::cpu::{self, Contraction, decode_operand, gemm_alpha};
use burn_nvfp4::format::{BlockScales, BlockShape, Format, Fp8Scaling, PackedMatrix, TensorScale};
use burn_nvfp4::kernels::alpha::{OperandScale, alpha};
use burn_nvfp4::kernels::dequantize::{decode, decode_for, from_host};
use burn_nvfp4::kernels::quantize::{Job, quantize_for};
use burn_nvfp4::recipe::ScaleRule;
use half::bf16;

use super::data::{MXFP4, ROW16, TILE, fp8, normal, nvfp4};
use super::{bits, expected, first_difference, job};
use crate::device::{Device, Runtime, device, download, supports, upload};

#[test]
fn alpha_is_that_of_the_cpu() {
    let Some(device) = device() else { return };
    let scale = |amax: f32, q_max: f32| TensorScale {
        amax: vec![amax],
        q_max,
    };
    for (a, b) in [(4.34, 8.75), (1e-30, 3e-20), (7.0, 0.1)] {
        let (lhs, rhs) = (scale(a, 2688.0), scale(b, 1536.0));
        let cpu::Alpha::Tensor(expected) = gemm_alpha(&lhs, &rhs) else {
            panic!("two tensor scales give one factor")
        };
        let (lhs, rhs) = (on_device(a, 2688.0, &device), on_device(b, 1536.0, &device));
        assert_eq!(download::<f32>(&alpha(&lhs, &rhs).unwrap()), [expected]);
        let got = alpha(&OperandScale::NONE, &rhs).unwrap();
        assert_eq!(download::<f32>(&got), [b * (1.0 / 1536.0)]);
    }
    assert!(alpha::<Runtime>(&OperandScale::NONE, &OperandScale::NONE).is_none());
}

fn on_device(amax: f32, q_max: f32, device: &Device) -> OperandScale<Runtime> {
    OperandScale {
        amax: Some(upload(TensorData::new(vec![amax], [1]), device)),
        q_max,
    }
}

/// The kernels that make the second operand write the factor of both.
#[test]
fn alpha_comes_with_the_second_operand() {
    let Some(device) = device() else { return };
    let shape = [48, 64];
    let x = normal(3, 48 * 64);
    let tensor = upload(TensorData::new(x.clone(), shape), &device);
    let other = on_device(4.34, 1536.0, &device);
    let row_scaled = nvfp4(BlockShape::Row16, ScaleRule::Row);
    for spec in [ROW16, TILE, MXFP4, fp8(Fp8Scaling::Tensor), row_scaled] {
        let job = job(spec, Contraction::Columns);
        let scale = TensorScale {
            amax: vec![4.34],
            q_max: 1536.0,
        };
        let own = expected(&x, shape, &job);
        let wanted = match gemm_alpha(own.tensor_scale(), &scale) {
            cpu::Alpha::Tensor(alpha) => Some(vec![alpha]),
            cpu::Alpha::Rows { .. } => None,
        };
        let second = Job {
            along: Contraction::Rows,
            ..job
        };
        for jobs in [vec![job], vec![job, second]] {
            let got = quantize_for(&tensor, &jobs, None, Some(&other));
            let alphas = got.iter().map(|made| made.alpha.as_ref().map(download));
            let mut of_first = vec![wanted.clone()];
            of_first.resize(jobs.len(), None);
            assert_eq!(alphas.collect::<Vec<_>>(), of_first, "{spec:?}");
            let packed = got[0].packed.as_ref().unwrap();
            let (_, decoded_alpha) = decode_for(packed, DType::F32, &other);
            assert_eq!(decoded_alpha.as_ref().map(download), wanted, "{spec:?}");
        }
    }
    let got = quantize_for(
        &tensor,
        &[job(MXFP4, Contraction::Columns)],
        None,
        Some(&OperandScale::NONE),
    );
    assert!(got[0].alpha.is_none(), "neither has a scale");
}

/// All codes under all scales of one byte, to every dtype of decoded operands.
#[test]
fn every_code_under_every_scale_is_decoded() {
    let Some(device) = device() else { return };
    let bytes: Vec<u8> = (0..=255).collect();
    for (format, block_k) in [
        (
            Format::Nvfp4 {
                block: BlockShape::Row16,
            },
            16,
        ),
        (Format::Mxfp4, 32),
    ] {
        // One row for each code, one block for each scale.
        let k = 256 * block_k;
        let rows = 16;
        let packed = (0..16)
            .flat_map(|code: u8| vec![code * 0x11; k / 2])
            .collect();
        let scales = bytes.repeat(rows);
        let scales = match format {
            Format::Nvfp4 { .. } => BlockScales::E4m3(scales),
            _ => BlockScales::E8m0(scales),
        };
        let scale = TensorScale {
            amax: vec![1.0],
            q_max: 1.0,
        };
        let matrix = PackedMatrix::from_parts((rows, k), format, packed, scales, scale).unwrap();
        let expected = decode_operand(&matrix);
        let on_device = from_host::<Runtime>(&matrix, &device);
        for dtype in [DType::F32, DType::BF16] {
            if !supports(dtype) {
                continue;
            }
            let decoded = decode(&on_device, dtype);
            let got: Vec<f32> = match dtype {
                DType::BF16 => download::<bf16>(&decoded.values)
                    .iter()
                    .map(|x| x.to_f32())
                    .collect(),
                _ => download(&decoded.values),
            };
            let difference = first_difference(&bits(&got), &bits(&expected));
            assert_eq!(difference, None, "{format:?} to {dtype:?}");
        }
    }
}
