//! Sampling of a linear: what the operands and GEMMs of a sampled step are.

use std::borrow::Cow;

use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, Shape, Slice, TensorMetadata};

use super::host::flat_dims;
use super::{Nvfp4Engine, Operand, OperandRequest};
use crate::recipe::{GemmSpec, OperandSpec};
use crate::runtime::{self, LinearPlan};
use crate::stats::{GemmSample, OperandSample};

/// Elements of an operand that are measured, about: reading back and quantizing all of a large one
/// would take longer than many steps.
const PART: usize = 1 << 17;

/// Height and width of the tiles that a part is made of: the longest blocks and rotations there
/// are.
const TILE: usize = 128;

/// Measures the operands that were made of `x`, if the step is sampled, or a part of them; each
/// under the amax that the whole is under, where that is one.
pub(super) fn operands<B: Nvfp4Engine>(
    x: &FloatTensor<B>,
    requests: &[OperandRequest<'_>],
    amaxes: &[Option<FloatTensor<B>>],
    plan: &LinearPlan,
) {
    if !plan.sampled || x.shape().num_elements() == 0 {
        return;
    }
    let device = B::float_device(x);
    let first = |request: &OperandRequest<'_>| {
        request.spec.is_quantized() && is_first::<B>(&device, plan, request.operand)
    };
    let wanted = requests.iter().zip(amaxes);
    let wanted: Vec<_> = wanted.filter(|(request, _)| first(request)).collect();
    if wanted.is_empty() {
        return;
    }
    let read = |amax: &Option<FloatTensor<B>>| {
        let amax = amax.clone()?;
        Some(B::read_matrix(amax, |amax| amax.first()))
    };
    let amaxes: Vec<_> = wanted.iter().map(|(_, amax)| read(amax)).collect();
    // Read once for all operands that are made of it.
    let measured: Vec<_> = B::read_matrix(part::<B>(x.clone()), |part| {
        let operands = wanted.iter().zip(amaxes);
        let operands = operands.map(|((request, _), amax)| part.statistics(request, amax));
        operands.collect()
    });
    for ((request, _), statistics) in wanted.into_iter().zip(measured) {
        let sample = OperandSample {
            step: plan.step,
            layer: plan.layer.as_deref().map(str::to_owned),
            operand: Cow::Borrowed(request.operand),
            format: request.spec.to_string(),
            statistics,
        };
        runtime::with_samples::<B, _>(&device, |store| store.add_operand(sample));
    }
}

/// A large matrix without most of its tiles: those that are left are spread evenly over both axes,
/// and keep their order.
fn part<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let (rows, cols) = flat_dims(&x.shape());
    if rows * cols <= PART {
        return x;
    }
    let ((row_tiles, height), (col_tiles, width)) = (tiles(rows), tiles(cols));
    let wanted = (PART / (height * width)).max(1);
    let across = wanted.isqrt().min(col_tiles);
    let down = (wanted / across).min(row_tiles);
    let across = (wanted / down).min(col_tiles);
    let [down, across] = [(row_tiles, down), (col_tiles, across)].map(|(tiles, wanted)| {
        let step = tiles / wanted;
        let bound = |at: usize| isize::try_from(at).expect("a tensor fits in memory");
        // From the middle of the first step: the beginning of a text is like no other place.
        Slice::new(
            bound(step / 2),
            Some(bound(step / 2 + (wanted - 1) * step + 1)),
            bound(step),
        )
    });
    let whole = |length: usize| Slice::from(0..length);
    let x = B::float_reshape(x, Shape::new([rows, cols]));
    let x = B::float_slice(x, &[whole(row_tiles * height), whole(col_tiles * width)]);
    let x = B::float_reshape(x, Shape::new([row_tiles, height, col_tiles, width]));
    let x = B::float_slice(x, &[down, whole(height), across, whole(width)]);
    let shape = x.shape();
    B::float_reshape(x, Shape::new([shape[0] * height, shape[2] * width]))
}

/// How many tiles an axis has, without the rest, and their length.
fn tiles(length: usize) -> (usize, usize) {
    match length / TILE {
        0 => (1, length),
        tiles => (tiles, TILE),
    }
}

/// Notes a GEMM that is about to run on operands, if the step is sampled.
pub(super) fn gemm<B: Nvfp4Engine>(
    name: &'static str,
    spec: GemmSpec,
    [lhs, rhs]: [&Operand<B>; 2],
    plan: &LinearPlan,
    device: &Device<B>,
) {
    if plan.sampled && is_first::<B>(device, plan, name) {
        let formats = [format(lhs, spec.lhs), format(rhs, spec.rhs)];
        add::<B>(
            name,
            formats,
            B::gemm_routine(lhs, rhs, device),
            plan,
            device,
        );
    }
}

/// Notes a GEMM that is Burn's own op, if the step is sampled.
pub(super) fn burns_own<B: Nvfp4Engine>(
    name: &'static str,
    tensor: &FloatTensor<B>,
    plan: &LinearPlan,
) {
    if !plan.sampled {
        return;
    }
    let device = B::float_device(tensor);
    if is_first::<B>(&device, plan, name) {
        let dtype = tensor.dtype().name().to_owned();
        let formats = [dtype.clone(), dtype];
        add::<B>(name, formats, "Burn's own op".into(), plan, &device);
    }
}

fn is_first<B: Backend>(device: &Device<B>, plan: &LinearPlan, what: &'static str) -> bool {
    runtime::with_samples::<B, _>(device, |store| {
        store.is_first(plan.step, plan.layer.as_deref(), what)
    })
}

fn add<B: Backend>(
    name: &'static str,
    [lhs, rhs]: [String; 2],
    routine: Cow<'static, str>,
    plan: &LinearPlan,
    device: &Device<B>,
) {
    let sample = GemmSample {
        step: plan.step,
        layer: plan.layer.as_deref().map(str::to_owned),
        gemm: Cow::Borrowed(name),
        lhs,
        rhs,
        routine,
    };
    runtime::with_samples::<B, _>(device, |store| store.add_gemm(sample));
}

/// What an operand that was made by `spec` really is.
fn format<B: Backend>(operand: &Operand<B>, spec: OperandSpec) -> String {
    match operand {
        Operand::HighPrecision { tensor, .. } => tensor.dtype().name().to_owned(),
        Operand::Packed { .. } | Operand::Decoded(_) | Operand::Device(_) => spec.to_string(),
    }
}

#[cfg(all(test, feature = "ndarray"))]
mod tests {
    use burn_backend::ops::FloatTensorOps;
    use burn_backend::{DType, TensorData};
    use burn_ndarray::NdArray;

    use super::*;

    /// Every element is its index.
    fn matrix(rows: usize, cols: usize) -> FloatTensor<NdArray> {
        let data: Vec<_> = (0..rows * cols).map(|i| i as f32).collect();
        <NdArray>::float_from_data(TensorData::new(data, [rows, cols]), &Default::default())
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the elements are indices"
    )]
    fn indices(x: FloatTensor<NdArray>) -> Vec<usize> {
        assert_eq!(x.dtype(), DType::F32);
        let data = burn_backend::read_sync(<NdArray>::float_into_data(x));
        let data = data.expect("a tensor in memory can be read");
        data.iter::<f32>().map(|index| index as usize).collect()
    }

    #[test]
    fn what_is_small_is_measured_whole() {
        let x = matrix(256, 512);
        assert_eq!(indices(part::<NdArray>(x.clone())), indices(x));
    }

    #[test]
    fn a_part_is_whole_tiles_from_all_over() {
        for (shape, of_part) in [
            ([16384, 512], [512, 256]),
            // The rest behind the last whole tile is left out.
            ([1000, 1100], [512, 256]),
            ([40, 8192], [40, 3200]),
            ([8192, 40], [3200, 40]),
        ] {
            let [rows, cols] = shape;
            let part = part::<NdArray>(matrix(rows, cols));
            assert_eq!(part.shape(), Shape::new(of_part), "{shape:?}");
            let indices = indices(part);
            let [height, width] = of_part;
            // Row and column that an element of the part has in the whole.
            let at = |row: usize, col: usize| {
                let index = indices[row * width + col];
                [index / cols, index % cols]
            };
            let (tall, wide) = (rows.min(TILE), cols.min(TILE));
            for row in (0..height).step_by(tall) {
                for col in (0..width).step_by(wide) {
                    let [top, left] = at(row, col);
                    assert!(top % tall == 0 && left % wide == 0, "{shape:?}");
                    let last = at(row + tall - 1, col + wide - 1);
                    assert_eq!(last, [top + tall - 1, left + wide - 1], "{shape:?}");
                }
            }
            let spread = (at(height - 1, 0)[0] - at(0, 0)[0]) as f64 / rows as f64;
            assert!(rows < TILE || spread > 0.4, "{shape:?}: {spread}");
        }
    }
}
