//! What a job writes: tensors in device memory, made before its kernel runs.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::job::Quantized;
use super::launch::Task;
use super::{AmaxSource, Codes, OutputsLaunch, Scales};
use crate::cpu::Contraction;
use crate::format::Reading;
use crate::kernels::source::{Source, address_type, empty, optional, vector_width};
use crate::kernels::tensors::bytes_dtype;
use crate::kernels::{DecodedTensor, DeviceScales, PackedTensor};

/// What a job writes.
#[derive(Debug)]
pub(super) struct Memory<R: CubeRuntime> {
    codes: Option<CubeTensor<R>>,
    scales: Option<CubeTensor<R>>,
    decoded: Option<CubeTensor<R>>,
    amax: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Memory<R> {
    pub(super) fn new(source: &Source<R>, task: &Task) -> Self {
        let Source { tensor, .. } = source;
        let make = |shape: Vec<usize>, dtype| empty(tensor, Shape::from(shape), dtype);
        let packed = task.packed();
        let [block_rows, block_k] = task.block();
        let blocks = vec![task.rows.div_ceil(block_rows), task.padded_k / block_k];
        let per_word = 32 / task.format.code_bits();
        let scales = match task.scales {
            Scales::Nvfp4 | Scales::FourOverSix(_) | Scales::Eden | Scales::Mx { .. } => {
                Some(bytes_dtype(&tensor.client))
            }
            Scales::Fp8Block => Some(DType::F32),
            Scales::Fp8Tensor => None,
        };
        let decoded = match task.along {
            Contraction::Columns => vec![task.rows, task.decoded_k()],
            Contraction::Rows => vec![task.decoded_k(), task.rows],
        };
        let has_own_amax = match task.amax {
            AmaxSource::Partials(_) => packed || task.has_tensor_scale(),
            AmaxSource::None | AmaxSource::Blocks => packed,
            AmaxSource::Rows | AmaxSource::Given => false,
        };
        Self {
            codes: packed.then(|| make(vec![task.rows, task.padded_k / per_word], DType::U32)),
            scales: scales.filter(|_| packed).map(|dtype| make(blocks, dtype)),
            decoded: task.job.decoded.map(|dtype| make(decoded, dtype)),
            amax: has_own_amax.then(|| make(vec![1], DType::F32)),
        }
    }

    pub(super) fn outputs<S: Numeric, NC: Size, D: Float, ND: Size>(
        &self,
    ) -> OutputsLaunch<S, NC, D, ND, R> {
        OutputsLaunch::new(
            optional(self.codes.as_ref()),
            optional(self.scales.as_ref()),
            optional(self.decoded.as_ref()),
            optional(self.amax.as_ref()),
        )
    }

    /// Vector widths of codes and decoded values.
    pub(super) fn widths(&self, task: &Task, source: &Source<R>) -> [usize; 2] {
        let codes = match task.codes {
            Codes::E2m1Nearest | Codes::E2m1Stochastic => 2,
            Codes::E4m3 => 4,
        };
        let decoded = match (&self.decoded, task.along) {
            (None, _) => 1,
            (Some(decoded), Contraction::Columns) => {
                let size = decoded.dtype.size();
                vector_width(&decoded.client, size, &[task.decoded_k()])
            }
            (Some(_), Contraction::Rows) => source.rows_width(),
        };
        [codes, decoded]
    }

    /// Dtypes of scales and decoded values.
    pub(super) fn dtypes(&self) -> [DType; 2] {
        [
            self.scales
                .as_ref()
                .map_or(DType::U32, |scales| scales.dtype),
            self.decoded
                .as_ref()
                .map_or(DType::F32, |decoded| decoded.dtype),
        ]
    }

    pub(super) fn address_type(&self, source: &Source<R>) -> AddressType {
        let written = [&self.codes, &self.scales, &self.decoded];
        let tensors = written.into_iter().flatten();
        let tensors: Vec<_> = tensors.chain([&source.tensor]).collect();
        address_type(&tensors)
    }

    pub(super) fn into_quantized(
        self,
        task: &Task,
        source: &Source<R>,
        regions: Option<CubeTensor<R>>,
    ) -> Quantized<R> {
        let amax = match task.amax {
            AmaxSource::Rows => regions.or_else(|| {
                let shape = Shape::new([task.rows]);
                Some(empty(&source.tensor, shape, DType::F32))
            }),
            AmaxSource::Given => regions,
            AmaxSource::None | AmaxSource::Partials(_) | AmaxSource::Blocks => self.amax,
        };
        let amax = match amax {
            Some(_)
                if task.is_empty()
                    && !matches!(task.amax, AmaxSource::Rows | AmaxSource::Given) =>
            {
                // No kernel ran. The amax of nothing is 0, that of a format without one is 1.
                let value: f32 = if task.has_tensor_scale() { 0.0 } else { 1.0 };
                let handle = source.tensor.client.create_from_slice(&value.to_ne_bytes());
                Some(CubeTensor::new_contiguous(
                    source.tensor.client.clone(),
                    source.tensor.device.clone(),
                    Shape::new([1]),
                    handle,
                    DType::F32,
                ))
            }
            amax => amax,
        };
        let q_max = if task.has_tensor_scale() {
            task.q_max
        } else {
            1.0
        };
        let scales = match (self.scales, task.scales) {
            (Some(scales), Scales::Fp8Block) => DeviceScales::F32(scales),
            (Some(scales), _) => DeviceScales::Bytes(scales),
            (None, _) => DeviceScales::None,
        };
        let decoded = self.decoded.map(|values| DecodedTensor {
            values,
            along: task.asked,
            amax: amax.clone().filter(|_| task.has_tensor_scale()),
            q_max,
        });
        let packed = self.codes.map(|codes| PackedTensor {
            rows: task.rows,
            k: task.k,
            padded_k: task.padded_k,
            format: task.format,
            codes,
            scales,
            amax: amax.expect("a packed operand has an amax"),
            q_max,
        });
        let reading = if task.along == task.asked {
            Reading::AsPacked
        } else {
            Reading::Transposed
        };
        Quantized {
            packed,
            reading,
            decoded,
            alpha: None,
        }
    }
}
