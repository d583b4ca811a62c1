//! Linear weights in 4 bits among the tensors of a Hugging Face directory.
//!
//! `config.json` announces the format; a linear is in 4 bits if any of its parts is there, and then
//! all of them have to be: codes without their scales are never read as anything else. Scales of
//! activations and of a KV cache that servers store beside them are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn_nvfp4::export::{AmaxNote, PartDtype, Parts, ServingFormat};
use burn_nvfp4::format::PackedMatrix;
use safetensors::tensor::Dtype;
use serde_json::Value;

use super::files::{FileTensor, TensorFiles};
use super::{CheckpointError, Problem};
use crate::config::lenient::Lenient;

/// Tensors by key.
pub(crate) type Tensors<'a> = BTreeMap<String, FileTensor<'a>>;

/// The format that the text of a `config.json` announces, if any.
///
/// # Errors
/// [`CheckpointError::UnknownQuantization`] if it announces one that is not read here.
pub(crate) fn announced_format(
    path: &Path,
    config: &str,
) -> Result<Option<ServingFormat>, CheckpointError> {
    // Whoever calls has parsed the text already.
    let Ok(config) = Lenient::parse(config) else {
        return Ok(None);
    };
    let announced = match config.get("quantization_config") {
        None | Some(Lenient::Null) => return Ok(None),
        Some(announced) => announced,
    };
    let named = METHOD.map(|field| Some((field, announced.get(field)?.text()?)));
    let named: Vec<_> = named.into_iter().flatten().collect();
    let fields = named
        .iter()
        .map(|&(field, name)| (field.to_owned(), name.into()));
    if let Some(format) = ServingFormat::of_config(&Value::Object(fields.collect())) {
        return Ok(Some(format));
    }
    let names: Vec<_> = named.iter().map(|&(_, name)| name).collect();
    Err(CheckpointError::UnknownQuantization {
        path: path.into(),
        method: match names.is_empty() {
            true => "no method".to_owned(),
            false => names.join(" "),
        },
    })
}

/// What a `quantization_config` says of its method.
const METHOD: [&str; 3] = ["quant_method", "quant_algo", "format"];

/// Suffixes that belong to a quantized model and are of no use here.
const IGNORED: [&str; 4] = ["input_scale", "input_global_scale", "k_scale", "v_scale"];

/// The tensors of quantized linears, taken out of all tensors.
pub(crate) struct QuantizedTensors<'a> {
    format: Option<ServingFormat>,
    /// By linear (the key without `.weight`), then by suffix.
    linears: BTreeMap<String, BTreeMap<&'static str, FileTensor<'a>>>,
    note: AmaxNote,
    /// Linears that were asked for.
    seen: BTreeSet<String>,
}

/// The parts of one linear, complete and of the right shapes.
pub(crate) struct LinearParts<'a> {
    format: ServingFormat,
    shape: (usize, usize),
    codes: FileTensor<'a>,
    scales: FileTensor<'a>,
    tensor: FileTensor<'a>,
    note: Option<(f32, f32)>,
}

impl<'a> QuantizedTensors<'a> {
    /// Takes every part of a quantized linear out of `tensors`, whose keys are those of the files
    /// after `rename`.
    pub(crate) fn take(
        format: Option<ServingFormat>,
        files: &TensorFiles,
        tensors: &mut Tensors<'a>,
        rename: impl Fn(&str) -> String,
    ) -> Self {
        let mut taken = Self {
            format,
            linears: BTreeMap::new(),
            note: AmaxNote::default(),
            seen: BTreeSet::new(),
        };
        let Some(format) = format else {
            return taken;
        };
        for metadata in files.metadata() {
            if let Some(note) = metadata.get(AmaxNote::KEY) {
                taken.note.extend_renamed(AmaxNote::decode(note), &rename);
            }
        }
        let suffixes = format.suffixes();
        tensors.retain(|key, tensor| {
            let Some((linear, suffix)) = key.rsplit_once('.') else {
                return true;
            };
            if IGNORED.contains(&suffix) {
                return false;
            }
            let Some(&suffix) = suffixes.iter().find(|known| **known == suffix) else {
                return true;
            };
            // ModelOpt calls codes `weight`, like a weight of floats.
            if suffix == "weight" && tensor.view.dtype() != Dtype::U8 {
                return true;
            }
            let parts = taken.linears.entry(linear.to_owned()).or_default();
            parts.insert(suffix, tensor.clone());
            false
        });
        taken
    }

    /// Every linear with the shape `[d_output, d_input]` of its codes; without codes, `None`.
    pub(crate) fn shapes(&self) -> Vec<(String, Option<[usize; 2]>)> {
        let Some([codes, ..]) = self.format.map(ServingFormat::suffixes) else {
            return Vec::new();
        };
        let linears = self.linears.iter().map(|(linear, parts)| {
            let codes = parts.get(codes).map(|codes| codes.view.shape());
            let shape = match codes {
                Some(&[rows, bytes]) => bytes.checked_mul(2).map(|k| [rows, k]),
                Some(_) | None => None,
            };
            (linear.clone(), shape)
        });
        linears.collect()
    }

    /// True if the weight of this key was asked for and some part of it was there.
    pub(crate) fn has_seen(&self, key: &str) -> bool {
        key.strip_suffix(".weight")
            .is_some_and(|linear| self.seen.contains(linear))
    }

    /// Parts of linears that nobody asked for, with their files.
    pub(crate) fn left_over(&self) -> impl Iterator<Item = (&str, &str)> {
        self.linears
            .iter()
            .filter_map(|(linear, parts)| Some((linear.as_str(), parts.values().next()?.file())))
    }

    /// The weight of a key, `[d_output, d_input]`, if it is in 4 bits. What is wrong with it goes
    /// to `problems`.
    pub(crate) fn linear(
        &mut self,
        key: &str,
        shape: &[usize],
        all_readable: bool,
        problems: &mut Vec<Problem>,
    ) -> Option<LinearParts<'a>> {
        let linear = key.strip_suffix(".weight")?;
        let (format, parts) = (self.format?, self.linears.remove(linear)?);
        self.seen.insert(linear.to_owned());
        let [rows, k] = [shape[0], shape[1]];
        let before = problems.len();
        for layout in format.layout(rows, k) {
            let key = format!("{linear}.{}", layout.suffix);
            let Some(tensor) = parts.get(layout.suffix) else {
                if all_readable {
                    problems.push(Problem::MissingPart {
                        key,
                        linear: linear.to_owned(),
                    });
                }
                continue;
            };
            let dtype = match layout.dtype {
                PartDtype::U8 => Dtype::U8,
                PartDtype::E4m3 => Dtype::F8_E4M3,
                PartDtype::F32 => Dtype::F32,
            };
            if tensor.view.dtype() != dtype {
                problems.push(Problem::PartDtype {
                    key,
                    found: format!("{:?}", tensor.view.dtype()),
                    expected: format!("{dtype:?}"),
                });
                continue;
            }
            let found = tensor.view.shape().to_vec();
            // A scalar is written with and without an axis.
            let is_scalar = layout.dtype == PartDtype::F32 && found.iter().product::<usize>() == 1;
            if found != layout.shape && !is_scalar {
                problems.push(Problem::Misshapen {
                    key,
                    found,
                    expected: layout.shape,
                });
            }
        }
        if problems.len() > before || parts.len() < 3 {
            return None;
        }
        let [codes, scales, tensor] = format.suffixes().map(|suffix| parts[suffix].clone());
        let parts = LinearParts {
            format,
            shape: (rows, k),
            codes,
            scales,
            tensor,
            note: self.note.get(linear),
        };
        match format.check(parts.shape, parts.parts()) {
            Ok(()) => Some(parts),
            Err(error) => {
                problems.push(Problem::BadQuantization {
                    linear: linear.to_owned(),
                    reason: error.to_string(),
                });
                None
            }
        }
    }
}

impl LinearParts<'_> {
    /// `[d_output, d_input]`.
    pub(crate) const fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// Bytes of codes and scales.
    pub(crate) fn bytes(&self) -> u64 {
        let parts = [&self.codes, &self.scales, &self.tensor];
        parts.map(|part| part.view.data().len() as u64).iter().sum()
    }

    /// Name of the file that holds the codes.
    pub(crate) fn file(&self) -> &str {
        self.codes.file()
    }

    fn parts(&self) -> Parts<'_> {
        let scale = self.tensor.view.data();
        let scale = scale.first_chunk().expect("dtype and shape were checked");
        Parts {
            codes: self.codes.view.data(),
            scales: self.scales.view.data(),
            tensor: f32::from_le_bytes(*scale),
        }
    }

    /// The weight as it is stored. Gives the memory of the file's pages back.
    pub(crate) fn join(&self) -> PackedMatrix {
        let matrix = self.format.join(self.shape, self.parts(), self.note);
        self.codes.release();
        self.scales.release();
        matrix.expect("the parts were checked")
    }

    /// Its values `[d_output, d_input]`, in the arithmetic of the format's loader.
    pub(crate) fn dequantize(&self, matrix: &PackedMatrix) -> Vec<f32> {
        let values = self.format.dequantize(matrix);
        values.expect("the matrix is one of a file")
    }
}
