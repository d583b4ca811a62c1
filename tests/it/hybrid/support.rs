//! Reading fixtures, comparing tensors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::backend::NdArray;
use burn::backend::ndarray::NdArrayDevice;
use burn::tensor::backend::Backend;
use burn::tensor::{BasicOps, DType, Int, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors};

/// The folder of the fixtures: `NEMOTRON_FIXTURES`, or the committed ones.
pub(crate) fn fixture_root() -> PathBuf {
    std::env::var_os("NEMOTRON_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/nemotron-h"),
        PathBuf::from,
    )
}

/// All fixtures: sub-folders with numbers to reproduce.
pub(crate) fn fixtures() -> Vec<PathBuf> {
    let root = fixture_root();
    let entries = fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut dirs: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("io.safetensors").exists())
        .collect();
    dirs.sort();
    assert!(!dirs.is_empty(), "no fixture in {}", root.display());
    dirs
}

/// A tensor of numbers, whatever they were.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    pub shape: Vec<usize>,
    pub values: Vec<f64>,
}

impl Numbers {
    pub(crate) fn of<B: Backend, const D: usize, K: BasicOps<B>>(tensor: Tensor<B, D, K>) -> Self {
        let data: TensorData = tensor.into_data();
        Self {
            shape: data.shape.to_vec(),
            values: data.iter::<f64>().collect(),
        }
    }

    /// Swaps the two axes of a matrix.
    pub(crate) fn transposed(&self) -> Self {
        let [rows, cols] = self.shape[..] else {
            panic!("not a matrix: {:?}", self.shape)
        };
        let values = (0..cols)
            .flat_map(|col| (0..rows).map(move |row| (row, col)))
            .map(|(row, col)| self.values[row * cols + col])
            .collect();
        Self {
            shape: vec![cols, rows],
            values,
        }
    }

    /// Positions `from..` of the second axis of three.
    pub(crate) fn tail(&self, from: usize) -> Self {
        self.positions(from, self.shape[1])
    }

    /// Positions `from..to` of the second axis of three.
    pub(crate) fn positions(&self, from: usize, to: usize) -> Self {
        let [batch, seq, width] = self.shape[..] else {
            panic!("rank of {:?}", self.shape)
        };
        let rows = (0..batch).flat_map(|b| (from..to).map(move |t| b * seq + t));
        let values = rows
            .flat_map(|row| &self.values[row * width..(row + 1) * width])
            .copied()
            .collect();
        Self {
            shape: vec![batch, to - from, width],
            values,
        }
    }

    /// `max |self - expected| / max |expected|`, infinite for NaN or another shape.
    pub(crate) fn error_to(&self, expected: &Self) -> f64 {
        if self.shape != expected.shape {
            return f64::INFINITY;
        }
        let pairs = self.values.iter().zip(&expected.values);
        let worst = pairs.fold(0.0, |worst: f64, (a, b)| match (a - b).abs() {
            error if error.is_nan() => f64::INFINITY,
            error => worst.max(error),
        });
        let scale = expected
            .values
            .iter()
            .fold(0.0, |max: f64, b| max.max(b.abs()));
        if worst == 0.0 { 0.0 } else { worst / scale }
    }
}

/// The contents of an `io.safetensors`.
pub(crate) struct Io(pub BTreeMap<String, Numbers>);

impl Io {
    pub(crate) fn read(dir: &Path) -> Self {
        let bytes = fs::read(dir.join("io.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let read = |(key, view): (&str, safetensors::tensor::TensorView<'_>)| {
            let values = match view.dtype() {
                Dtype::F32 => numbers(view.data(), |b| f64::from(f32::from_le_bytes(b))),
                Dtype::F64 => numbers(view.data(), f64::from_le_bytes),
                Dtype::I64 => numbers(view.data(), |b| i64::from_le_bytes(b) as f64),
                other => panic!("{key} has dtype {other:?}"),
            };
            (
                key.to_owned(),
                Numbers {
                    shape: view.shape().to_vec(),
                    values,
                },
            )
        };
        Self(file.iter().map(read).collect())
    }

    pub(crate) fn ids<B: Backend>(&self, key: &str, device: &B::Device) -> Tensor<B, 2, Int> {
        int_tensor(&self.0[key], device)
    }

    pub(crate) fn index(&self, key: &str) -> usize {
        self.0[key].values[0] as usize
    }
}

pub(crate) fn int_tensor<B: Backend>(ids: &Numbers, device: &B::Device) -> Tensor<B, 2, Int> {
    let values: Vec<i64> = ids.values.iter().map(|&id| id as i64).collect();
    Tensor::from_data(TensorData::new(values, ids.shape.clone()), device)
}

fn numbers<const W: usize>(bytes: &[u8], decode: impl Fn([u8; W]) -> f64) -> Vec<f64> {
    bytes
        .chunks_exact(W)
        .map(|chunk| decode(chunk.try_into().unwrap()))
        .collect()
}

/// The CPU device for a test on `NdArray<f64>`.
///
/// Burn 0.21 keeps one default float dtype per device, set by the first backend that uses it. All
/// tests share a process, so an f64 test that came first would turn the f32 tests into f64 ones.
pub(crate) fn f64_device() -> NdArrayDevice {
    let device = NdArrayDevice::Cpu;
    let settled = Tensor::<NdArray<f32>, 1>::zeros([1], &device);
    assert_eq!(
        settled.dtype(),
        DType::F32,
        "an f64 test ran without f64_device"
    );
    device
}
