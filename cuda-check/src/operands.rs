//! Launches of the project's own kernels that a step of the recorded recipes leaves out.
//!
//! Every way to quantize an operand, along both axes, from f32 and from bf16; back from each
//! format; and, where the instruction exists, the GEMM on block-scaled MMAs.

use anyhow::{Context, Result};
use burn_backend::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_nvfp4::cpu::Contraction;
use burn_nvfp4::kernels::alpha::alpha;
use burn_nvfp4::kernels::dequantize::{decode, dequantize};
use burn_nvfp4::kernels::gemm::scaled_mma::{self, Mma};
use burn_nvfp4::kernels::quantize::{Job, Packing, quantize, quantize_under};
use burn_nvfp4::kernels::{CubeTensor, PackedTensor};
use burn_nvfp4::recipe::{BlockShape, OperandSpec, ScaleRule, presets};
use burn_nvfp4::rng::{RandomKey, Stream};
use cubecl::Runtime;
use cuda_check::properties::Architecture;
use cuda_check::runtime::{RecordingDevice, RecordingRuntime, recorded};
use cuda_check::specs::{self, ROW16, nvfp4};

/// Rows and columns in whole vectors, and in neither.
const ALIGNED: [usize; 2] = [256, 512];
const ODD: [usize; 2] = [67, 129];

/// Quantizes by every spec, and dequantizes what comes of it.
///
/// # Errors
/// What a launch panics with.
pub(crate) fn quantizers(architecture: Architecture) -> Result<()> {
    let device = RecordingDevice(architecture);
    for spec in specs::all() {
        recorded(&device, || {
            quantize_by(spec, &device);
            Ok(())
        })
        .with_context(|| format!("{spec:?}"))?;
    }
    Ok(())
}

fn quantize_by(spec: OperandSpec, device: &RecordingDevice) {
    let aligned = [DType::F32, DType::BF16].map(|dtype| tensor(ALIGNED, dtype, device));
    // The way of addressing does not depend on the spec: two formats stand for all.
    let odd = [ROW16, presets::MXFP8.fprop.lhs].contains(&spec);
    let odd = odd.then(|| tensor(ODD, DType::BF16, device));
    for x in aligned.iter().chain(&odd) {
        for along in [Contraction::Columns, Contraction::Rows] {
            let packed = pack(x, spec, along);
            decode(&packed, DType::BF16);
            decode(&packed, DType::F32);
            dequantize(&packed);
        }
    }
    // Nor does an amax that is given: one format stands for all, alone and beside another job.
    if spec == ROW16 {
        let amax = Some(tensor([1, 1], DType::F32, device));
        let given = job(spec, Contraction::Columns);
        let own = job(spec.with_hadamard(), Contraction::Rows);
        quantize_under(
            &aligned[1],
            &[given],
            std::slice::from_ref(&amax),
            None,
            None,
        );
        quantize_under(&aligned[1], &[given, own], &[amax, None], None, None);
    }
}

/// Multiplies packed operands on block-scaled MMAs, on the architecture that has them: in each
/// tiling and both output dtypes, with weights in rows and in tiles.
///
/// # Errors
/// If the GEMM refuses its own architecture, or panics.
pub(crate) fn scaled_gemms(architecture: Architecture) -> Result<()> {
    let device = RecordingDevice(architecture);
    match architecture {
        Architecture::Sm120a => recorded(&device, || multiply(&device)),
        Architecture::Sm80 | Architecture::Sm90a | Architecture::Sm100a => Ok(()),
    }
}

fn multiply(device: &RecordingDevice) -> Result<()> {
    let bias = tensor([1, ALIGNED[0]], DType::F32, device);
    let operand = |shape, spec| {
        let x = tensor(shape, DType::BF16, device);
        pack(&x, spec, Contraction::Columns)
    };
    for rows in [32, ALIGNED[0]] {
        let lhs = operand([rows, ALIGNED[1]], ROW16);
        for block in [BlockShape::Row16, BlockShape::Tile16x16] {
            let rhs = operand(ALIGNED, nvfp4(block, ScaleRule::Tensor));
            let scale = alpha(&lhs.scale(), &rhs.scale());
            for (out, bias) in [(DType::F32, None), (DType::BF16, Some(&bias))] {
                scaled_mma::gemm(&lhs, &rhs, scale.as_ref(), bias, out, Mma::Native)
                    .with_context(|| format!("{rows} rows, {block:?} weight, {out:?} out"))?;
            }
        }
    }
    Ok(())
}

fn pack(
    x: &CubeTensor<RecordingRuntime>,
    spec: OperandSpec,
    along: Contraction,
) -> PackedTensor<RecordingRuntime> {
    let mut quantized = quantize(x, &[job(spec, along)], None);
    let packed = quantized.pop().and_then(|quantized| quantized.packed);
    packed.expect("one job that asks for codes gives codes")
}

fn job(spec: OperandSpec, along: Contraction) -> Job {
    Job {
        spec,
        along,
        key: RandomKey {
            seed: 1,
            step: 2,
            micro_batch: 0,
            stream: Stream::Wgrad,
        },
        packing: Packing::AskedAxis,
        decoded: Some(DType::BF16),
    }
}

fn tensor(
    shape: [usize; 2],
    dtype: DType,
    device: &RecordingDevice,
) -> CubeTensor<RecordingRuntime> {
    let client = RecordingRuntime::client(device);
    empty_device_contiguous_dtype(client, *device, Shape::new(shape), dtype)
}
