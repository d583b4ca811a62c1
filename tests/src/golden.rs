//! Golden files: safetensors written by other people's code, and the record of what was compared.
//!
//! A [`Record`] knows every key of its file. Comparing marks a key as compared, reading an input
//! marks it as read; what is left over is printed, so that a key nobody looks at cannot pass for a
//! success.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::{Debug, Display};
use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::{Dtype, SafeTensors};

use crate::tolerance::first_beyond;

/// One tensor of a golden file.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Element type as it is in the file.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Golden {
    /// Rows and columns, a vector counting as one row.
    pub fn matrix_shape(&self) -> (usize, usize) {
        match self.shape.as_slice() {
            [] => (1, 1),
            [n] => (1, *n),
            [rows @ .., cols] => (rows.iter().product(), *cols),
        }
    }

    /// The elements of a U8 tensor.
    pub fn u8(&self) -> Vec<u8> {
        assert_eq!(self.dtype, Dtype::U8);
        self.bytes.clone()
    }

    /// The elements of an F32 tensor.
    pub fn f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        self.bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect()
    }

    /// The elements of an F64 tensor.
    pub fn f64(&self) -> Vec<f64> {
        assert_eq!(self.dtype, Dtype::F64);
        self.bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| f64::from_le_bytes(b))
            .collect()
    }

    /// The elements of a BF16 tensor.
    pub fn bf16(&self) -> Vec<bf16> {
        assert_eq!(self.dtype, Dtype::BF16);
        self.bytes
            .as_chunks()
            .0
            .iter()
            .map(|&b| bf16::from_le_bytes(b))
            .collect()
    }

    /// The elements of any integer tensor.
    pub fn i64(&self) -> Vec<i64> {
        if self.dtype == Dtype::I64 {
            self.bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| i64::from_le_bytes(b))
                .collect()
        } else if self.dtype == Dtype::I32 {
            let words = self.bytes.as_chunks().0.iter();
            words.map(|&b| i64::from(i32::from_le_bytes(b))).collect()
        } else if self.dtype == Dtype::I8 {
            self.bytes
                .iter()
                .map(|&b| i64::from(b.cast_signed()))
                .collect()
        } else {
            self.u8().into_iter().map(i64::from).collect()
        }
    }

    /// The elements of any floating-point tensor, widened.
    pub fn widened(&self) -> Vec<f64> {
        if self.dtype == Dtype::BF16 {
            self.bf16().into_iter().map(f64::from).collect()
        } else if self.dtype == Dtype::F32 {
            self.f32().into_iter().map(f64::from).collect()
        } else {
            self.f64()
        }
    }
}

/// A golden file and the record of what of it was compared.
#[derive(Debug)]
pub struct Record {
    name: String,
    tensors: BTreeMap<String, Golden>,
    read: BTreeSet<String>,
    compared: BTreeSet<String>,
    elements: usize,
    failures: Vec<String>,
}

impl Record {
    /// Reads a safetensors file.
    ///
    /// # Errors
    /// If the file cannot be read or is no safetensors file.
    pub fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        let bytes = std::fs::read(path)?;
        let tensors = SafeTensors::deserialize(&bytes)?
            .iter()
            .map(|(key, view)| {
                let golden = Golden {
                    dtype: view.dtype(),
                    shape: view.shape().to_vec(),
                    bytes: view.data().to_vec(),
                };
                (key.to_owned(), golden)
            })
            .collect();
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            name,
            tensors,
            read: BTreeSet::new(),
            compared: BTreeSet::new(),
            elements: 0,
            failures: Vec::new(),
        })
    }

    /// File name without extension.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every case that has the key `<case>.<field>`, found by looking.
    pub fn cases_with(&self, field: &str) -> Vec<String> {
        let suffix = format!(".{field}");
        self.tensors
            .keys()
            .filter_map(|key| key.strip_suffix(&suffix))
            .map(str::to_owned)
            .collect()
    }

    /// An input, or an optional expected value that the caller compares itself.
    pub fn get(&mut self, key: &str) -> Option<Golden> {
        let golden = self.tensors.get(key)?.clone();
        self.read.insert(key.to_owned());
        Some(golden)
    }

    /// An input that its case cannot do without.
    ///
    /// # Panics
    /// If the file does not have it.
    pub fn input(&mut self, key: &str) -> Golden {
        self.get(key)
            .unwrap_or_else(|| panic!("{}: no tensor {key}", self.name))
    }

    /// Compares a U8 tensor byte by byte, if the file has it.
    pub fn compare_bytes(&mut self, key: &str, got: &[u8]) {
        if let Some(expected) = self.get(key) {
            self.compare_each(key, got, &expected.u8(), |a, b| a == b);
        }
    }

    /// Compares an F32 tensor bit by bit, if the file has it.
    pub fn compare_f32(&mut self, key: &str, got: &[f32]) {
        if let Some(expected) = self.get(key) {
            self.compare_each(key, got, &expected.f32(), |a, b| a.to_bits() == b.to_bits());
        }
    }

    /// Compares an F64 tensor exactly, if the file has it; zeros of both signs are equal.
    pub fn compare_f64(&mut self, key: &str, got: &[f64]) {
        if let Some(expected) = self.get(key) {
            self.compare_each(key, got, &expected.f64(), |a, b| a == b);
        }
    }

    /// Compares any integer tensor, if the file has it.
    pub fn compare_i64(&mut self, key: &str, got: &[i64]) {
        if let Some(expected) = self.get(key) {
            self.compare_each(key, got, &expected.i64(), |a, b| a == b);
        }
    }

    /// Compares any floating-point tensor within a tolerance (see [`first_beyond`]), if it is
    /// there.
    pub fn compare_close(&mut self, key: &str, got: &[f64], of_largest: f64, of_value: f64) {
        let Some(expected) = self.get(key) else {
            return;
        };
        let expected = expected.widened();
        if self.same_length(key, got.len(), expected.len())
            && let Some((i, got, expected)) = first_beyond(got, &expected, of_largest, of_value)
        {
            self.failures
                .push(format!("{key}[{i}]: {got:e} is too far from {expected:e}"));
        }
    }

    fn compare_each<T: Debug + Copy>(
        &mut self,
        key: &str,
        got: &[T],
        expected: &[T],
        equal: impl Fn(&T, &T) -> bool,
    ) {
        if !self.same_length(key, got.len(), expected.len()) {
            return;
        }
        let total = got.len();
        let mut differing = got
            .iter()
            .zip(expected)
            .enumerate()
            .filter(|(_, (g, e))| !equal(g, e))
            .peekable();
        if let Some((i, (got, expected))) = differing.peek().copied() {
            let n = differing.count();
            self.failures.push(format!(
                "{key}: {n} of {total} differ, first [{i}]: {got:?}, expected {expected:?}"
            ));
        }
    }

    fn same_length(&mut self, key: &str, got: usize, expected: usize) -> bool {
        self.compared.insert(key.to_owned());
        self.elements += expected;
        if got != expected {
            self.failures
                .push(format!("{key}: {got} elements, expected {expected}"));
        }
        got == expected
    }

    /// Keys that were neither compared nor read.
    pub fn untouched(&self) -> Vec<&str> {
        self.tensors
            .keys()
            .filter(|&key| !self.read.contains(key))
            .map(String::as_str)
            .collect()
    }

    /// Tensors compared.
    pub fn compared_tensors(&self) -> usize {
        self.compared.len()
    }

    /// What went wrong, one line each.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}

impl Display for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inputs = self.read.difference(&self.compared).count();
        write!(
            f,
            "{:<16} {:>4} tensors, {:>7} elements compared; {inputs} inputs; {} failures",
            self.name,
            self.compared.len(),
            self.elements,
            self.failures.len(),
        )?;
        let untouched = self.untouched();
        if let [first, ..] = untouched.as_slice() {
            write!(f, "; {} keys not compared, from {first}", untouched.len())?;
        }
        Ok(())
    }
}

/// Where the TransformerEngine vectors are: `NVFP4_GOLDEN`, or the set in this repository.
pub fn te_nvfp4_directory() -> PathBuf {
    std::env::var_os("NVFP4_GOLDEN").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("golden")
                .join("te-nvfp4")
        },
        PathBuf::from,
    )
}

/// Every safetensors file of a directory, by name.
///
/// # Errors
/// If the directory or one of its files cannot be read.
pub fn open_directory(directory: &Path) -> Result<Vec<Record>, Box<dyn Error>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| Record::open(path)).collect()
}
