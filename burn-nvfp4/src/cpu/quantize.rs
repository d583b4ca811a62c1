//! Quantizing a matrix: one walk for every format (numerics §2 to §7).
//!
//! 1. [`Plan`]: the amax that the format needs (tensor, rows or none, behind the transform), and
//!    from it the rule for block scales.
//! 2. The packed operand is cut into strips; strips that share rows are one task.
//! 3. Per strip: load and transform, block amaxes and scales, codes, and out. What comes out is
//!    either packed, or decoded at once for an emulated GEMM, from the same codes and scales.

use rayon::prelude::*;

use super::element::{Contraction, Element, MatrixView};
use super::elements;
use super::plan::{Plan, TensorAmax};
use super::strip::{GROUP, Grid, PARALLEL_FROM, Strip, Window};
use crate::error::QuantizeError;
use crate::format::{BlockScales, Format, Fp8Scaling, PackedMatrix, TensorScale};
use crate::recipe::OperandSpec;
use crate::rng::RandomKey;

/// Quantizes a matrix as one operand of a GEMM.
///
/// `along` names the axis that the GEMM sums over; it comes out last. Any shape is taken: the last
/// blocks are padded with zeros, which changes no code and no scale of the elements that exist.
///
/// # Shapes
/// `x`: `[rows, k]` with [`Contraction::Columns`], `[k, rows]` with [`Contraction::Rows`]; the
/// result is `[rows, k]` in both cases, with `k` as in [`OperandSpec::packed_k`].
///
/// # Errors
/// [`QuantizeError::HighPrecision`] if the spec asks for no quantization,
/// [`QuantizeError::Unsupported`] if its parts do not go together.
///
/// # Source
/// numerics §2 to §7. For NVFP4 the same bits as TransformerEngine, given the random bytes.
///
/// ```
/// use burn_nvfp4::cpu::{Contraction, MatrixView, quantize};
/// use burn_nvfp4::format::BlockScales;
/// use burn_nvfp4::recipe::{BlockShape, OperandSpec, Rounding, ScaleRule, Transform};
/// use burn_nvfp4::rng::{RandomKey, Stream};
///
/// let spec = OperandSpec::Nvfp4 {
///     block: BlockShape::Row16,
///     scale: ScaleRule::Tensor,
///     rounding: Rounding::NearestEven,
///     transform: Transform::None,
/// };
/// // Not read where rounding is to nearest.
/// let key = RandomKey { seed: 0, step: 0, micro_batch: 0, stream: Stream::Other(0) };
/// let x = MatrixView::new(&[6.0_f32; 16], 1, 16)?;
/// let q = quantize(x, Contraction::Columns, &spec, key)?;
/// assert_eq!(q.codes(), [0x77; 8]); // code 7 is 6.0
/// assert_eq!(q.block_scales(), &BlockScales::E4m3(vec![0x7E])); // 448, the largest E4M3
/// # Ok::<(), burn_nvfp4::QuantizeError>(())
/// ```
pub fn quantize<E: Element>(
    x: MatrixView<'_, E>,
    along: Contraction,
    spec: &OperandSpec,
    key: RandomKey,
) -> Result<PackedMatrix, QuantizeError> {
    let plan = Plan::new(&x, along, spec, TensorAmax::Measured, key)?;
    pack(&x, along, &plan)
}

/// [`quantize`] under another tensor's scale: that of a whole that `x` is a part of, as projections
/// share theirs that a server runs as one GEMM, or that of an earlier step (numerics §13).
///
/// `amax` is at least that of `x`, else the largest elements saturate.
///
/// # Errors
/// As [`quantize`]; [`QuantizeError::Unsupported`] if the operand does not have one scale for the
/// tensor.
pub fn quantize_with_amax<E: Element>(
    x: MatrixView<'_, E>,
    along: Contraction,
    spec: &OperandSpec,
    amax: f32,
    key: RandomKey,
) -> Result<PackedMatrix, QuantizeError> {
    let plan = Plan::new(&x, along, spec, TensorAmax::Given(amax), key)?;
    pack(&x, along, &plan)
}

/// The packed matrix of a plan.
fn pack<E: Element>(
    x: &MatrixView<'_, E>,
    along: Contraction,
    plan: &Plan,
) -> Result<PackedMatrix, QuantizeError> {
    let mut codes = vec![0; plan.layout.codes];
    let (mut bytes, mut floats) = match plan.format {
        Format::Nvfp4 { .. } | Format::Mxfp4 | Format::Mxfp8 => {
            (vec![0; plan.layout.scales], vec![])
        }
        Format::Fp8 { .. } => (vec![], vec![0.0; plan.layout.scales]),
    };
    let sink = Sink::Packed {
        codes: &mut codes,
        bytes: &mut bytes,
        floats: &mut floats,
    };
    plan.run(x, along, sink);
    let block_scales = match plan.format {
        Format::Nvfp4 { .. } => BlockScales::E4m3(bytes),
        Format::Mxfp4 | Format::Mxfp8 => BlockScales::E8m0(bytes),
        Format::Fp8 {
            scaling: Fp8Scaling::Tensor,
        } => BlockScales::None,
        Format::Fp8 {
            scaling: Fp8Scaling::Row128 | Fp8Scaling::Tile128x128,
        } => BlockScales::F32(floats),
    };
    let shape = (plan.grid.rows, plan.k);
    let tensor_scale = plan.tensor_scale.clone();
    PackedMatrix::from_parts(shape, plan.format, codes, block_scales, tensor_scale)
}

/// Quantizes a matrix and decodes it in the same pass: what an emulated GEMM multiplies.
///
/// The same bits as [`decode_operand`](super::decode_operand) of [`quantize`], without the packed
/// matrix in between.
///
/// # Shapes
/// `x` as in [`quantize`]; the result is `[rows, padded_k]`, code times block scale. The tensor
/// scale is not in it.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_operand<E: Element>(
    x: MatrixView<'_, E>,
    along: Contraction,
    spec: &OperandSpec,
    key: RandomKey,
) -> Result<(Vec<f32>, TensorScale), QuantizeError> {
    let plan = Plan::new(&x, along, spec, TensorAmax::Measured, key)?;
    Ok(decoded(&x, along, plan))
}

/// [`quantize_operand`] under the amax of another step: what [`quantize_with_amax`] stands for.
///
/// # Errors
/// As [`quantize_with_amax`].
pub fn quantize_operand_with_amax<E: Element>(
    x: MatrixView<'_, E>,
    along: Contraction,
    spec: &OperandSpec,
    amax: f32,
    key: RandomKey,
) -> Result<(Vec<f32>, TensorScale), QuantizeError> {
    let plan = Plan::new(&x, along, spec, TensorAmax::Given(amax), key)?;
    Ok(decoded(&x, along, plan))
}

/// Code times block scale, and the tensor scale, of a plan.
fn decoded<E: Element>(
    x: &MatrixView<'_, E>,
    along: Contraction,
    plan: Plan,
) -> (Vec<f32>, TensorScale) {
    let mut values = vec![0.0; plan.grid.rows * plan.layout.padded_k];
    plan.run(x, along, Sink::Decoded(&mut values));
    (values, plan.tensor_scale)
}

impl Plan {
    /// Quantizes strip after strip into the sink.
    fn run<E: Element>(&self, x: &MatrixView<'_, E>, along: Contraction, sink: Sink<'_>) {
        let tasks = self.split(sink);
        let work = |strip: &mut Strip, (row, mut sink): (usize, Sink<'_>)| {
            for window in self.grid.windows(row) {
                strip.load(x, along, self.rotation, window);
                self.rule.apply(strip, &self.grid);
                self.encode(strip);
                self.store(strip, &mut sink);
            }
        };
        if self.grid.rows * self.grid.k < PARALLEL_FROM {
            let mut strip = Strip::default();
            tasks.into_iter().for_each(|task| work(&mut strip, task));
        } else {
            tasks.into_par_iter().for_each_init(Strip::default, work);
        }
    }

    /// One task per strip height: its first row, and its own part of the sink.
    fn split<'a>(&self, mut sink: Sink<'a>) -> Vec<(usize, Sink<'a>)> {
        let Grid {
            rows,
            height,
            block,
            ..
        } = self.grid;
        let codes = height * self.layout.padded_k / (8 / self.format.code_bits());
        let scales = height / block.rows * (self.layout.padded_k / self.format.block_len());
        let values = height * self.layout.padded_k;
        (0..rows)
            .step_by(height)
            .map(|row| (row, sink.take(codes, scales, values)))
            .collect()
    }

    /// Codes of a strip whose scales are known.
    fn encode(&self, strip: &mut Strip) {
        let Window {
            row,
            rows,
            k,
            width,
            ..
        } = strip.window;
        strip.codes.resize(rows * width, 0);
        let groups = strip.window.groups();
        for r in 0..rows {
            let (codes, values) = (
                &mut strip.codes[r * width..(r + 1) * width],
                &strip.values[r * width..(r + 1) * width],
            );
            let encode = &strip.encode[r / self.grid.block.rows * groups..][..groups];
            match (self.format, &self.random) {
                (Format::Nvfp4 { .. } | Format::Mxfp4, None) => {
                    elements::encode_e2m1(values, encode, codes);
                }
                (Format::Nvfp4 { .. } | Format::Mxfp4, Some((key, amax))) => {
                    let block = (row + r) * (self.layout.padded_k / GROUP) + k / GROUP;
                    key.fill(*amax, block as u64, codes);
                    elements::encode_e2m1_stochastic(values, encode, codes);
                }
                (Format::Mxfp8 | Format::Fp8 { .. }, _) => {
                    elements::encode_e4m3(values, encode, codes);
                }
            }
        }
    }

    /// Moves codes and scales of a strip to where they belong.
    fn store(&self, strip: &Strip, sink: &mut Sink<'_>) {
        let Window { rows, k, width, .. } = strip.window;
        let padded_k = self.layout.padded_k;
        let filled = width.min(padded_k - k);
        let groups = strip.window.groups();
        for r in 0..rows {
            let codes = &strip.codes[r * width..][..filled];
            let start = r * padded_k + k;
            match sink {
                Sink::Packed { codes: out, .. } => match self.format.code_bits() {
                    4 => elements::pack(codes, &mut out[start / 2..][..filled / 2]),
                    _ => out[start..][..filled].copy_from_slice(codes),
                },
                Sink::Decoded(out) => {
                    let decode = &strip.decode[r / self.grid.block.rows * groups..][..groups];
                    let out = &mut out[start..][..filled];
                    match self.format.code_bits() {
                        4 => elements::decode_e2m1(codes, decode, out),
                        _ => elements::decode_e4m3(codes, decode, out),
                    }
                }
            }
        }
        if let Sink::Packed { bytes, floats, .. } = sink {
            let block_len = self.format.block_len();
            let per_row = padded_k / block_len;
            let step = block_len.div_ceil(GROUP);
            let first = k / block_len;
            for block_row in 0..rows.div_ceil(self.grid.block.rows) {
                let start = block_row * per_row + first;
                let span = block_row * groups..(block_row + 1) * groups;
                store_scales(&strip.bytes[span.clone()], step, bytes.get_mut(start..));
                store_scales(&strip.decode[span], step, floats.get_mut(start..));
            }
        }
    }
}

/// One scale out of every `step` groups; nothing if the format has no scales of this type.
fn store_scales<T: Copy>(groups: &[T], step: usize, out: Option<&mut [T]>) {
    for (out, &scale) in out.into_iter().flatten().zip(groups.iter().step_by(step)) {
        *out = scale;
    }
}

/// Where the result goes.
enum Sink<'a> {
    /// Codes and block scales; of `bytes` and `floats`, one is empty.
    Packed {
        codes: &'a mut [u8],
        bytes: &'a mut [u8],
        floats: &'a mut [f32],
    },
    /// Code times block scale.
    Decoded(&'a mut [f32]),
}

impl<'a> Sink<'a> {
    /// Takes the part of the next task off the front.
    fn take(&mut self, n_codes: usize, n_scales: usize, n_values: usize) -> Self {
        match self {
            Sink::Packed {
                codes,
                bytes,
                floats,
            } => Sink::Packed {
                codes: take(codes, n_codes),
                bytes: take(bytes, n_scales),
                floats: take(floats, n_scales),
            },
            Sink::Decoded(values) => Sink::Decoded(take(values, n_values)),
        }
    }
}

/// The first `n` elements, or all if there are fewer.
fn take<'a, T>(slice: &mut &'a mut [T], n: usize) -> &'a mut [T] {
    let whole = std::mem::take(slice);
    let (head, tail) = whole.split_at_mut(n.min(whole.len()));
    *slice = tail;
    head
}
