//! What a quantization did to an operand: errors, and where they come from.
//!
//! One pass over pairs of a number and its quantized value ([`ErrorSums`]), one over the blocks
//! ([`OperandStatistics::measure`]). Behind a transform the numbers are the transformed ones.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::cpu::{
    Contraction, Element, MatrixView, dequantize, hadamard, quantize, quantize_with_amax,
    random_hadamard,
};
use crate::error::QuantizeError;
use crate::format::scale::Nvfp4Scaling;
use crate::format::{BlockScales, PackedMatrix, e2m1, e4m3};
use crate::recipe::{OperandSpec, ScaleRule, Transform};
use crate::rng::RandomKey;

/// Rows of a task.
const ROWS: usize = 16;

/// Sums over the elements of an operand and their quantized values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    /// Elements.
    pub elements: u64,
    /// Of `(q - x)^2`.
    pub error: f64,
    /// Of `x^2`.
    pub norm: f64,
    /// Of `x (q - x)`: negative if quantization shrinks.
    pub overlap: f64,
    /// Elements that are not zero.
    pub nonzero: u64,
    /// Of those, the ones that became zero.
    pub underflow: u64,
    /// Elements that were cut off at the largest code.
    pub saturation: u64,
}

impl ErrorSums {
    /// Compares a matrix with its quantized form and the values that this stands for, all
    /// `[rows, k]` and row-major. Elements that are not finite are left out of the sums.
    pub fn new<E: Element>(x: &[E], matrix: &PackedMatrix, values: &[f32]) -> Self {
        let (k, bits) = (matrix.k(), matrix.format().code_bits());
        if k == 0 {
            return Self::default();
        }
        let row_bytes = matrix.padded_k() * bits / 8;
        let rows = x.par_chunks(ROWS * k).zip(values.par_chunks(ROWS * k));
        let codes = matrix.codes().par_chunks(ROWS * row_bytes);
        let sums = rows.zip(codes).map(|((x, q), codes)| {
            let rows = x.chunks(k).zip(q.chunks(k)).zip(codes.chunks(row_bytes));
            rows.map(|((x, q), codes)| Self::of_row(x, q, codes, bits))
                .fold(Self::default(), Self::plus)
        });
        sums.reduce(Self::default, Self::plus)
    }

    fn of_row<E: Element>(x: &[E], q: &[f32], codes: &[u8], bits: usize) -> Self {
        let mut sums = Self::default();
        for (i, (x, &q)) in x.iter().zip(q).enumerate() {
            let x = x.to_f32();
            sums.elements += 1;
            sums.nonzero += u64::from(x != 0.0);
            sums.underflow += u64::from(x != 0.0 && q == 0.0);
            // Not what lies on the largest code but for the rounding of the scale.
            let cut_off = x.abs() > q.abs() * 1.000_001;
            sums.saturation += u64::from(cut_off && is_largest(codes, i, bits));
            let (x, q) = (f64::from(x), f64::from(q));
            let error = q - x;
            if error.is_finite() {
                sums.error += error * error;
                sums.norm += x * x;
                sums.overlap += x * error;
            }
        }
        sums
    }

    fn plus(self, other: Self) -> Self {
        Self {
            elements: self.elements + other.elements,
            error: self.error + other.error,
            norm: self.norm + other.norm,
            overlap: self.overlap + other.overlap,
            nonzero: self.nonzero + other.nonzero,
            underflow: self.underflow + other.underflow,
            saturation: self.saturation + other.saturation,
        }
    }

    /// `|q - x| / |x|`, Frobenius norms; 0 for a matrix of zeros.
    pub fn relative_error(&self) -> f64 {
        ratio(self.error, self.norm).sqrt()
    }

    /// Signal to quantization noise in dB; `None` without noise or without a signal.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.error > 0.0 && self.norm > 0.0).then(|| 10.0 * (self.norm / self.error).log10())
    }

    /// Share of the non-zero elements that became zero.
    pub fn underflow_share(&self) -> f64 {
        ratio(self.underflow as f64, self.nonzero as f64)
    }

    /// Share of the elements that were cut off at the largest code.
    pub fn saturation_share(&self) -> f64 {
        ratio(self.saturation as f64, self.elements as f64)
    }

    /// How much longer `q` is than `x` in the direction of `x`: `<x, q - x> / <x, x>`.
    pub fn bias(&self) -> f64 {
        ratio(self.overlap, self.norm)
    }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

/// True if code `i` of a row is the largest there is, of either sign.
fn is_largest(codes: &[u8], i: usize, bits: usize) -> bool {
    if bits == 4 {
        let code = codes[i / 2] >> (4 * (i % 2)) & 0xF;
        e2m1::decode(code).abs() == e2m1::MAX
    } else {
        e4m3::decode(codes[i]).abs() == e4m3::MAX
    }
}

/// What a quantization did to one operand.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperandStatistics {
    /// Elements, without padding.
    pub elements: u64,
    /// Largest magnitude, or the amax that was kept of another step; the largest of the rows' if
    /// they have scales of their own, and 1 in a format without a tensor scale.
    pub tensor_amax: f32,
    /// Signal to quantization noise in dB; absent without noise or without a signal.
    pub sqnr_db: Option<f64>,
    /// Share of the non-zero elements that became zero.
    pub underflow: f64,
    /// Share of the elements that were cut off at the largest code.
    pub saturation: f64,
    /// Share of the blocks whose scale became zero although they hold other elements than zeros.
    pub zero_scale_blocks: f64,
    /// Share of the blocks that four-over-six scaled to 4, where that is another scale than for 6.
    pub scaled_to_four: Option<f64>,
    /// `<x, q - x> / <x, x>` where the random key decides on bits: what is left of it for a large
    /// operand is bias, negative if quantization shrinks.
    pub rounding_bias: Option<f64>,
}

impl OperandStatistics {
    /// Quantizes an operand as [`quantize`] does and compares.
    ///
    /// # Errors
    /// As [`quantize`].
    pub fn measure<E: Element>(
        x: MatrixView<'_, E>,
        along: Contraction,
        spec: &OperandSpec,
        key: RandomKey,
    ) -> Result<Self, QuantizeError> {
        let matrix = quantize(x, along, spec, key)?;
        let source = transformed(&x, along, spec, &key);
        Ok(Self::of(&source, &matrix, spec))
    }

    /// [`Self::measure`] under the amax of another step.
    ///
    /// # Errors
    /// As [`quantize_with_amax`].
    pub fn measure_with_amax<E: Element>(
        x: MatrixView<'_, E>,
        along: Contraction,
        spec: &OperandSpec,
        amax: f32,
        key: RandomKey,
    ) -> Result<Self, QuantizeError> {
        let matrix = quantize_with_amax(x, along, spec, amax, key)?;
        let source = transformed(&x, along, spec, &key);
        Ok(Self::of(&source, &matrix, spec))
    }

    /// Compares `[rows, k]`, transformed as the spec says, with its quantized form.
    pub fn of<E: Element>(x: &[E], matrix: &PackedMatrix, spec: &OperandSpec) -> Self {
        let sums = ErrorSums::new(x, matrix, &dequantize(matrix));
        let blocks = block_counts(x, matrix);
        let share = |count: u64| ratio(count as f64, blocks.count as f64);
        let four_over_six = matches!(
            spec,
            OperandSpec::Nvfp4 {
                scale: ScaleRule::FourOverSix { .. },
                ..
            }
        );
        Self {
            elements: sums.elements,
            tensor_amax: matrix.tensor_scale().max_amax(),
            sqnr_db: sums.sqnr_db(),
            underflow: sums.underflow_share(),
            saturation: sums.saturation_share(),
            zero_scale_blocks: share(blocks.zero_scale),
            scaled_to_four: four_over_six.then(|| share(blocks.four)),
            rounding_bias: spec.is_random().then(|| sums.bias()),
        }
    }
}

/// The elements that are rounded, `[rows, k]`, contraction axis last.
fn transformed<E: Element>(
    x: &MatrixView<'_, E>,
    along: Contraction,
    spec: &OperandSpec,
    key: &RandomKey,
) -> Vec<f32> {
    let (rows, length) = match along {
        Contraction::Columns => (x.rows(), x.cols()),
        Contraction::Rows => (x.cols(), x.rows()),
    };
    let k = spec.packed_k(length);
    let points = spec.transform().points();
    let mut out = vec![0.0; rows * k];
    let work = |(row, out): (usize, &mut [f32])| {
        let element = |i: usize| match along {
            Contraction::Columns => x.data()[row * x.cols() + i],
            Contraction::Rows => x.data()[i * x.cols() + row],
        };
        let mut values = vec![0.0; k.next_multiple_of(points)];
        for (i, value) in values.iter_mut().take(length).enumerate() {
            *value = element(i).to_f32();
        }
        match spec.transform() {
            Transform::None => {}
            Transform::Hadamard { signs } => hadamard(&mut values, signs),
            Transform::RandomHadamard => random_hadamard(&mut values, key.signs()),
        }
        out.copy_from_slice(&values[..k]);
    };
    if k > 0 {
        out.par_chunks_mut(k).enumerate().for_each(work);
    }
    out
}

/// Numbers of blocks.
#[derive(Clone, Copy, Default)]
struct BlockCounts {
    count: u64,
    zero_scale: u64,
    four: u64,
}

fn block_counts<E: Element>(x: &[E], matrix: &PackedMatrix) -> BlockCounts {
    let BlockScales::E4m3(scales) = matrix.block_scales() else {
        return BlockCounts::default();
    };
    let (k, block) = (matrix.k(), matrix.format().block_dims());
    let per_row = matrix.padded_k() / block.k;
    let scale = matrix.tensor_scale();
    let scaling = Nvfp4Scaling::new(scale.max_amax(), scale.q_max);
    let mut counts = BlockCounts::default();
    for (index, &scale) in scales.iter().enumerate() {
        let (row, col) = (index / per_row * block.rows, index % per_row * block.k);
        let mut amax = 0.0_f32;
        for row in row..matrix.rows().min(row + block.rows) {
            let elements = &x[row * k + col.min(k)..row * k + k.min(col + block.k)];
            amax = elements
                .iter()
                .fold(amax, |amax, x| amax.max(x.to_f32().abs()));
        }
        counts.count += 1;
        counts.zero_scale += u64::from(scale == 0 && amax > 0.0);
        let (six, four) = scaling.block_scales_six_and_four(amax);
        counts.four += u64::from(scale == four && four != six);
    }
    counts
}
