//! What is in a directory, and what 4 bits do or would do to each weight.

use std::collections::BTreeMap;
use std::path::Path;

use burn_nvfp4::export::ServingFormat;

use super::ServingError;
use super::directory::Directory;
use super::quantize::{group_amax, quantize};
use super::selection::{Selection, fused_groups};
use super::statistics::{WeightStatistics, zero_blocks};
use super::weights::WeightRule;
use crate::checkpoint::files::FileTensor;

/// One tensor, or one linear in 4 bits with all its parts.
#[derive(Clone, Debug, PartialEq)]
pub struct InspectedTensor {
    /// Its key; of a linear in 4 bits, that of the weight.
    pub key: String,
    /// Format, or dtype.
    pub format: String,
    /// Shape; of a linear in 4 bits, `[d_output, d_input]`.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: u64,
    /// Share of blocks that hold nothing but zeros; `None` for a tensor that has no 4-bit form.
    pub zero_blocks: Option<f64>,
    /// The error against the original; `None` where there is none to compare with.
    pub statistics: Option<WeightStatistics>,
}

/// What is looked at.
#[derive(Debug)]
pub enum Inspected<'a> {
    /// The weights as they would be after quantizing.
    Planned {
        /// Whose arithmetic.
        rule: WeightRule,
        /// Which tensors stay.
        selection: &'a Selection,
    },
    /// The weights as they are, against those of another directory.
    Against(&'a Path),
    /// The weights as they are.
    Alone,
}

/// Hands each tensor of a directory to `each`, in the order of the files.
///
/// # Errors
/// [`ServingError`]; with [`Inspected::Planned`], [`ServingError::Quantized`] if the weights are in
/// 4 bits already, with the others [`ServingError::NotQuantized`] if they are not.
pub fn inspect_directory(
    path: &Path,
    what: &Inspected<'_>,
    each: &mut dyn FnMut(InspectedTensor),
) -> Result<(), ServingError> {
    let directory = Directory::open(path)?;
    match (what, directory.format()?) {
        (Inspected::Planned { rule, selection }, None) => {
            directory.check_unquantized()?;
            planned(&directory, *rule, selection, each)
        }
        (Inspected::Against(original), Some(format)) => {
            let original = Directory::open(original)?;
            quantized(&directory, format, Some(&original), each)
        }
        (Inspected::Alone, Some(format)) => quantized(&directory, format, None, each),
        (Inspected::Planned { .. }, Some(_)) => directory.check_unquantized(),
        (Inspected::Against(_) | Inspected::Alone, None) => {
            let path = path.join(crate::checkpoint::files::CONFIG_FILE);
            Err(ServingError::NotQuantized { path })
        }
    }
}

/// True if the directory announces weights in 4 bits.
///
/// # Errors
/// [`ServingError`] if it cannot be opened, or announces another quantization.
pub fn is_quantized(path: &Path) -> Result<bool, ServingError> {
    Ok(Directory::open(path)?.format()?.is_some())
}

fn planned(
    directory: &Directory,
    rule: WeightRule,
    selection: &Selection,
    each: &mut dyn FnMut(InspectedTensor),
) -> Result<(), ServingError> {
    let tensors = directory.files.tensors(&mut Vec::new());
    selection.check_matched(tensors.iter().map(|tensor| tensor.key.as_str()))?;
    let order: Vec<_> = tensors.iter().map(|tensor| tensor.key.clone()).collect();
    let (linears, kept): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|tensor| {
        let (dtype, shape) = (tensor.view.dtype(), tensor.view.shape());
        selection.keeps(&tensor.key, dtype, shape).is_none()
    });
    // The amax of each group first: its members need not be neighbours.
    let mut linears_by_key = BTreeMap::new();
    for group in fused_groups(linears) {
        let amax = group_amax(&group)?;
        for tensor in group {
            tensor.release();
            linears_by_key.insert(tensor.key.clone(), (tensor, amax));
        }
    }
    let kept: BTreeMap<_, _> = kept.into_iter().map(|t| (t.key.clone(), t)).collect();
    for key in order {
        if let Some((tensor, amax)) = linears_by_key.get(&key) {
            let matrix = quantize(tensor, rule, *amax)?;
            let values = burn_nvfp4::cpu::dequantize(&matrix);
            let floats = tensor.floats().expect("a selected tensor holds floats");
            each(InspectedTensor {
                zero_blocks: Some(zero_blocks(&matrix)),
                statistics: Some(WeightStatistics::new(&floats, &matrix, &values)),
                ..plain(tensor)
            });
            tensor.release();
        } else if let Some(tensor) = kept.get(&key) {
            each(plain(tensor));
        }
    }
    Ok(())
}

fn quantized(
    directory: &Directory,
    format: ServingFormat,
    original: Option<&Directory>,
    each: &mut dyn FnMut(InspectedTensor),
) -> Result<(), ServingError> {
    let originals = original.map(|original| {
        let tensors = original.files.tensors(&mut Vec::new()).into_iter();
        let tensors = tensors.map(|tensor| (tensor.key.clone(), tensor));
        (original, tensors.collect::<BTreeMap<_, _>>())
    });
    let quantized = directory.quantized(format)?;
    for (linear, parts) in &quantized.linears {
        let key = format!("{linear}.weight");
        let (rows, k) = parts.shape();
        let matrix = parts.join();
        let statistics = match &originals {
            None => None,
            Some((dir, originals)) => {
                let found = originals.get(&key).filter(|t| t.view.shape() == [rows, k]);
                let found = found.and_then(|tensor| Some((tensor, tensor.floats()?)));
                let Some((tensor, floats)) = found else {
                    return Err(ServingError::Differs {
                        key,
                        found: format!("{rows}x{k} in 4 bits"),
                        quantized: directory.path.clone(),
                        original: dir.path.clone(),
                    });
                };
                let values = parts.dequantize(&matrix);
                let statistics = WeightStatistics::new(&floats, &matrix, &values);
                tensor.release();
                Some(statistics)
            }
        };
        each(InspectedTensor {
            key,
            format: match format {
                ServingFormat::Modelopt => "NVFP4 modelopt".to_owned(),
                ServingFormat::CompressedTensors => "NVFP4 compressed-tensors".to_owned(),
            },
            shape: vec![rows, k],
            bytes: parts.bytes(),
            zero_blocks: Some(zero_blocks(&matrix)),
            statistics,
        });
    }
    for tensor in &quantized.others {
        each(plain(tensor));
    }
    Ok(())
}

/// A tensor without a 4-bit form.
fn plain(tensor: &FileTensor<'_>) -> InspectedTensor {
    InspectedTensor {
        key: tensor.key.clone(),
        format: format!("{:?}", tensor.view.dtype()),
        shape: tensor.view.shape().to_vec(),
        bytes: tensor.view.data().len() as u64,
        zero_blocks: None,
        statistics: None,
    }
}
