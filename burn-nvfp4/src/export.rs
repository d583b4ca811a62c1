//! NVFP4 weights as inference servers read them: names, dtypes and shapes of the parts, the entries
//! in the configuration, and the arithmetic that each loader decodes with.
//!
//! A served weight is a [`PackedMatrix`] `[d_output, d_input]` in 1x16 blocks with one tensor
//! scale. [`served`] brings a quantizer's matrix into that form without changing a value: a 16x16
//! tile scale is repeated for its rows, and a block whose scale is zero becomes zeros under scale
//! 1. [`ServingFormat`] splits it into tensors and puts it together again.
//!
//! The tensor scale of a file does not determine the amax that it was computed from, which a GEMM
//! needs to the last bit; [`AmaxNote`] carries it beside the tensors, where loaders ignore it.
//!
//! Nothing here opens a file.

use serde_json::Value;

use crate::error::QuantizeError;
use crate::format::scale::{NVFP4_Q_MAX, tensor_decode_scale, tensor_encode_scale};
use crate::format::{BlockScales, BlockShape, Format, PackedMatrix, TensorScale, e4m3};
use crate::recipe::{GemmSpec, OperandSpec, Recipe, Rounding, ScaleRule, Transform, presets};

mod note;
mod modelopt;
mod compressed_tensors;
mod rounding;
mod decode;

pub use note::AmaxNote;
pub use rounding::quantize_as_modelopt;

/// Elements of a block.
const BLOCK: usize = 16;

/// The E4M3 byte of scale 1.
const ONE: u8 = 0x38;

/// Whose tensor names and configuration entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServingFormat {
    /// NVIDIA Model Optimizer's, read by vLLM, TensorRT-LLM and SGLang.
    Modelopt,
    /// compressed-tensors' `nvfp4-pack-quantized`, read by vLLM and transformers.
    CompressedTensors,
}

/// Dtype of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartDtype {
    /// Two codes.
    U8,
    /// Block scale.
    E4m3,
    /// Tensor scale.
    F32,
}

/// One tensor of a served weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartLayout {
    /// What follows the name of the linear and a dot.
    pub suffix: &'static str,
    /// Dtype.
    pub dtype: PartDtype,
    /// Shape.
    pub shape: Vec<usize>,
}

impl PartLayout {
    /// Bytes of the tensor.
    pub fn bytes(&self) -> usize {
        let width = match self.dtype {
            PartDtype::U8 | PartDtype::E4m3 => 1,
            PartDtype::F32 => 4,
        };
        width * self.shape.iter().product::<usize>()
    }
}

/// The parts of a served weight: codes, block scales, tensor scale, in this order everywhere.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// `[d_output, d_input / 2]`, the even column in the low nibble.
    pub codes: &'a [u8],
    /// `[d_output, d_input / 16]`, E4M3.
    pub scales: &'a [u8],
    /// The tensor scale as the format stores it.
    pub tensor: f32,
}

/// Why a weight cannot be served, or what was served cannot be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// Another format than NVFP4 with one tensor scale.
    #[error("servers read NVFP4 weights with one tensor scale, this one has {found}")]
    NotServed {
        /// What it has.
        found: &'static str,
    },
    /// Rows do not divide into blocks.
    #[error("a row of {k} elements does not divide into blocks of 16")]
    RaggedRows {
        /// Length of a row.
        k: usize,
    },
    /// A tensor scale that no quantizer writes.
    #[error("the tensor scale is {value}, it has to be positive and finite")]
    TensorScale {
        /// The value.
        value: f32,
    },
    /// A block scale that is NaN or negative.
    #[error("block scale {index} is the byte {byte:#04x}, which is no positive number")]
    BlockScale {
        /// Its position.
        index: usize,
        /// Its bits.
        byte: u8,
    },
    /// The parts do not fit each other.
    #[error(transparent)]
    Parts(#[from] QuantizeError),
}

impl ServingFormat {
    /// The tensors of a weight `[d_output, d_input]`.
    pub fn layout(self, d_output: usize, d_input: usize) -> [PartLayout; 3] {
        let [codes, scales, tensor] = self.suffixes();
        let part = |suffix, dtype, shape| PartLayout {
            suffix,
            dtype,
            shape,
        };
        let scalar = match self {
            Self::Modelopt => vec![],
            Self::CompressedTensors => vec![1],
        };
        [
            part(codes, PartDtype::U8, vec![d_output, d_input / 2]),
            part(scales, PartDtype::E4m3, vec![d_output, d_input / BLOCK]),
            part(tensor, PartDtype::F32, scalar),
        ]
    }

    /// What follows the name of the linear and a dot, for codes, block scales and tensor scale.
    pub const fn suffixes(self) -> [&'static str; 3] {
        match self {
            Self::Modelopt => modelopt::SUFFIXES,
            Self::CompressedTensors => compressed_tensors::SUFFIXES,
        }
    }

    /// Splits a served weight.
    ///
    /// # Errors
    /// [`ExportError`] if the matrix is not in the form that [`served`] makes.
    pub fn split(self, matrix: &PackedMatrix) -> Result<Parts<'_>, ExportError> {
        let (BlockScales::E4m3(scales), Format::Nvfp4 { block }) =
            (matrix.block_scales(), matrix.format())
        else {
            return Err(not_served("another format"));
        };
        if block != BlockShape::Row16 {
            return Err(not_served("16x16 tiles"));
        }
        let tensor = tensor_level(matrix)?;
        Ok(Parts {
            codes: matrix.codes(),
            scales,
            tensor: self.stored_scale(tensor.0, tensor.1),
        })
    }

    /// Checks that [`ServingFormat::join`] can put parts together.
    ///
    /// # Errors
    /// [`ExportError`] if the parts do not fit each other, or hold scales that no quantizer writes.
    pub fn check(self, (rows, k): (usize, usize), parts: Parts<'_>) -> Result<(), ExportError> {
        if !k.is_multiple_of(BLOCK) {
            return Err(ExportError::RaggedRows { k });
        }
        let [codes, scales, _] = self.layout(rows, k);
        for (part, expected, got) in [
            ("codes", codes.bytes(), parts.codes.len()),
            ("block scales", scales.bytes(), parts.scales.len()),
        ] {
            if expected != got {
                return Err(QuantizeError::PartLength {
                    part,
                    expected,
                    got,
                }
                .into());
            }
        }
        let value = parts.tensor;
        if !value.is_finite() || value <= 0.0 {
            return Err(ExportError::TensorScale { value });
        }
        // 0x7F is NaN, and a scale has no sign.
        match parts.scales.iter().position(|&byte| byte >= 0x7F) {
            Some(index) => {
                let byte = parts.scales[index];
                Err(ExportError::BlockScale { index, byte })
            }
            None => Ok(()),
        }
    }

    /// Puts a served weight together.
    ///
    /// `note`: the amax and what it was mapped to, if the file says; else the amax that the tensor
    /// scale stands for, to within rounding.
    ///
    /// # Errors
    /// As [`ServingFormat::check`].
    pub fn join(
        self,
        shape: (usize, usize),
        parts: Parts<'_>,
        note: Option<(f32, f32)>,
    ) -> Result<PackedMatrix, ExportError> {
        self.check(shape, parts)?;
        let value = parts.tensor;
        let noted = note
            .filter(|&(amax, q_max)| self.stored_scale(amax, q_max).to_bits() == value.to_bits());
        let (amax, q_max) = noted.unwrap_or_else(|| (self.amax(value), NVFP4_Q_MAX));
        let format = Format::Nvfp4 {
            block: BlockShape::Row16,
        };
        let tensor_scale = TensorScale {
            amax: vec![amax],
            q_max,
        };
        let scales = BlockScales::E4m3(parts.scales.to_vec());
        let codes = parts.codes.to_vec();
        Ok(PackedMatrix::from_parts(
            shape,
            format,
            codes,
            scales,
            tensor_scale,
        )?)
    }

    /// The values of a served weight, `[d_output, d_input]`, in the arithmetic of its loader.
    ///
    /// One f32 product per element, `code * factor`, as in
    /// [`dequantize`](crate::cpu::dequantize); the three agree but for the last bit of the factor.
    /// compressed-tensors then rounds to bf16.
    ///
    /// # Errors
    /// As [`ServingFormat::split`].
    pub fn dequantize(self, matrix: &PackedMatrix) -> Result<Vec<f32>, ExportError> {
        let parts = self.split(matrix)?;
        Ok(match self {
            Self::Modelopt => decode::decode(parts, |scale| scale * parts.tensor),
            Self::CompressedTensors => decode::decode(parts, |scale| scale / parts.tensor),
        })
    }

    /// `quantization_config` of `config.json`, for a model whose linears `kept` are in high
    /// precision. Activations are not quantized: they would need a calibrated scale.
    pub fn quantization_config(self, kept: &[String]) -> Value {
        match self {
            Self::Modelopt => modelopt::quantization_config(kept),
            Self::CompressedTensors => compressed_tensors::quantization_config(kept),
        }
    }

    /// A further file that loaders look for: its name and contents.
    pub fn further_file(self, kept: &[String]) -> Option<(&'static str, Value)> {
        match self {
            Self::Modelopt => Some((modelopt::CONFIG_FILE, modelopt::hf_quant_config(kept))),
            Self::CompressedTensors => None,
        }
    }

    /// The format that a `quantization_config` names, if it is one of NVFP4.
    pub fn of_config(config: &Value) -> Option<Self> {
        if modelopt::is_named_by(config) {
            Some(Self::Modelopt)
        } else if compressed_tensors::is_named_by(config) {
            Some(Self::CompressedTensors)
        } else {
            None
        }
    }

    /// The tensor scale of an amax.
    fn stored_scale(self, amax: f32, q_max: f32) -> f32 {
        match self {
            Self::Modelopt => tensor_decode_scale(amax, q_max),
            Self::CompressedTensors => tensor_encode_scale(amax, q_max),
        }
    }

    /// An amax whose tensor scale is `stored`, if there is one nearby.
    ///
    /// Several amaxes may have the same scale. The one with the fewest significant bits is taken:
    /// that of a bf16 weight.
    fn amax(self, stored: f32) -> f32 {
        let estimate = match self {
            Self::Modelopt => stored * NVFP4_Q_MAX,
            Self::CompressedTensors => NVFP4_Q_MAX / stored,
        };
        let near =
            (-2..=2).map(|step| f32::from_bits(estimate.to_bits().wrapping_add_signed(step)));
        let fitting =
            near.filter(|&amax| self.stored_scale(amax, NVFP4_Q_MAX).to_bits() == stored.to_bits());
        fitting
            .max_by_key(|amax| amax.to_bits().trailing_zeros())
            .unwrap_or(estimate)
    }
}

/// The recipe of a model whose weights are in 4 bits and whose activations are not.
pub const WEIGHTS_ONLY: Recipe = Recipe {
    fprop: GemmSpec {
        lhs: OperandSpec::HighPrecision,
        rhs: OperandSpec::Nvfp4 {
            block: BlockShape::Row16,
            scale: ScaleRule::Tensor,
            rounding: Rounding::NearestEven,
            transform: Transform::None,
        },
    },
    ..presets::HIGH_PRECISION
};

/// Brings a quantized weight `[d_output, d_input]` into the form that servers read, without
/// changing a value.
///
/// # Errors
/// [`ExportError`] if it is not NVFP4 with one tensor scale, or a row does not divide into blocks.
pub fn served(matrix: &PackedMatrix) -> Result<PackedMatrix, ExportError> {
    if !matches!(matrix.format(), Format::Nvfp4 { .. }) {
        return Err(not_served("another format"));
    }
    tensor_level(matrix)?;
    let (rows, k) = (matrix.rows(), matrix.k());
    if !k.is_multiple_of(BLOCK) {
        return Err(ExportError::RaggedRows { k });
    }
    let mut scales = matrix.row_block_scales().into_owned();
    let mut codes = matrix.codes().to_vec();
    for (scale, codes) in scales.iter_mut().zip(codes.chunks_exact_mut(BLOCK / 2)) {
        if e4m3::decode(*scale) == 0.0 {
            *scale = ONE;
            codes.fill(0);
        }
    }
    let format = Format::Nvfp4 {
        block: BlockShape::Row16,
    };
    let tensor_scale = matrix.tensor_scale().clone();
    Ok(PackedMatrix::from_parts(
        (rows, k),
        format,
        codes,
        BlockScales::E4m3(scales),
        tensor_scale,
    )?)
}

/// The amax of the tensor and what it is mapped to.
fn tensor_level(matrix: &PackedMatrix) -> Result<(f32, f32), ExportError> {
    match matrix.tensor_scale() {
        TensorScale { amax, q_max } if amax.len() == 1 => Ok((amax[0], *q_max)),
        TensorScale { .. } => Err(not_served("a scale for every row")),
    }
}

const fn not_served(found: &'static str) -> ExportError {
    ExportError::NotServed { found }
}

#[cfg(test)]
mod tests;
