//! What tests of the hybrid's kernels share: values, slices of wider buffers, and the reference,
//! which is the model's composition in f64 on the CPU.

use burn::backend::{Autodiff, NdArray};
use burn::prelude::*;
use burn::tensor::DType;
use burn_nvfp4::kernels::CubeTensor;
use tests::tolerance::first_beyond;

use crate::device::{Device, Runtime, download, supports, upload};

/// The composition, exact for what is compared here.
pub(crate) type Reference = Autodiff<NdArray<f64>>;

/// f32 kernels against the exact result, relative to the largest value.
///
/// WGSL's `exp` is off by `3 + 2 |x|` ULP, 23 ULP or 1.4e-6 for the largest `|x|` here, and its
/// division by 2.5 ULP; the longest sums, of a few hundred terms, add `sqrt(n) * 2^-24`.
pub(crate) const F32_OF_LARGEST: f64 = 3e-6;

/// Activation dtypes that the device stores.
pub(crate) fn dtypes() -> impl Iterator<Item = DType> {
    [DType::F32, DType::F16, DType::BF16]
        .into_iter()
        .filter(|dtype| supports(*dtype))
}

/// Half of the last place, relative to the value.
pub(crate) fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 0.0,
        DType::F16 => 2.0_f64.powi(-11),
        DType::BF16 => 2.0_f64.powi(-8),
        _ => unreachable!("no activation has {dtype:?}"),
    }
}

/// Deterministic numbers of about `-scale..scale`, exact in `dtype`.
pub(crate) fn values(len: usize, scale: f32, salt: u64, dtype: DType) -> Vec<f32> {
    let mut state = salt.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    (0..len)
        .map(|_| match dtype {
            DType::F16 => half::f16::from_f32(next()).to_f32(),
            DType::BF16 => half::bf16::from_f32(next()).to_f32(),
            _ => next(),
        })
        .collect()
}

/// A dense tensor on the device.
pub(crate) fn dense(
    values: &[f32],
    shape: impl Into<Shape>,
    dtype: DType,
    device: &Device,
) -> CubeTensor<Runtime> {
    let data = TensorData::new(values.to_vec(), shape.into());
    upload(data.convert_dtype(dtype), device)
}

/// Channels before and behind a slice: an offset that no vector divides, and one that some do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Margins(pub(crate) usize, pub(crate) usize);

/// What the margins of a slice hold, to see that nobody writes there.
const OUTSIDE: f32 = -7.0;

/// `[batch, seq, channels]` as a slice of a buffer with wider rows.
pub(crate) fn slice(
    values: &[f32],
    [batch, seq, channels]: [usize; 3],
    Margins(before, behind): Margins,
    dtype: DType,
    device: &Device,
) -> CubeTensor<Runtime> {
    let wide = before + channels + behind;
    let mut buffer = vec![OUTSIDE; batch * seq * wide];
    for (row, values) in buffer.chunks_mut(wide).zip(values.chunks(channels)) {
        row[before..before + channels].copy_from_slice(values);
    }
    let mut tensor = dense(&buffer, [batch, seq, wide], dtype, device);
    tensor.meta.shape_mut()[2] = channels;
    tensor.handle = tensor
        .handle
        .offset_start((before * dtype.size()) as u64)
        .offset_end((behind * dtype.size()) as u64);
    tensor
}

/// The values of a [`slice`] whose margins are untouched.
///
/// # Panics
/// If they are not.
pub(crate) fn sliced(tensor: &CubeTensor<Runtime>, margins: Margins) -> Vec<f64> {
    let Margins(before, behind) = margins;
    let [batch, seq, channels] = tensor.meta.shape().dims();
    let wide = before + channels + behind;
    let mut whole = tensor.clone();
    whole.handle.offset_start = None;
    whole.handle.offset_end = None;
    let whole = CubeTensor::new_contiguous(
        whole.client,
        whole.device,
        Shape::new([batch, seq, wide]),
        whole.handle,
        whole.dtype,
    );
    let buffer = host(&whole);
    let outside = |values: &[f64]| values.iter().all(|v| *v == f64::from(OUTSIDE));
    let rows = buffer.chunks(wide);
    assert!(
        rows.clone()
            .all(|row| outside(&row[..before]) && outside(&row[before + channels..])),
        "written beside the slice"
    );
    rows.flat_map(|row| row[before..before + channels].to_vec())
        .collect()
}

/// The values of a tensor of any float dtype.
pub(crate) fn host(tensor: &CubeTensor<Runtime>) -> Vec<f64> {
    match tensor.dtype {
        DType::F32 => download::<f32>(tensor).into_iter().map(f64::from).collect(),
        DType::F16 => download::<half::f16>(tensor)
            .into_iter()
            .map(f64::from)
            .collect(),
        DType::BF16 => download::<half::bf16>(tensor)
            .into_iter()
            .map(f64::from)
            .collect(),
        dtype => unreachable!("no activation has {dtype:?}"),
    }
}

/// A tensor of the reference, with a gradient to come.
pub(crate) fn reference<const D: usize>(values: &[f32], shape: [usize; D]) -> Tensor<Reference, D> {
    let values: Vec<f64> = values.iter().copied().map(f64::from).collect();
    let device = Default::default();
    Tensor::from_data(TensorData::new(values, shape), (&device, DType::F64)).require_grad()
}

/// The values of a tensor of a CPU backend.
pub(crate) fn exact<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// Asserts that a result in `dtype` is the exact one, but for sums in f32 and one rounding.
pub(crate) fn assert_close(got: &[f64], expected: &[f64], dtype: DType, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let beyond = first_beyond(got, expected, F32_OF_LARGEST, rounding(dtype));
    assert_eq!(beyond, None, "{what} in {dtype:?}");
}
