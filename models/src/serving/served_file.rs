//! One file of a directory with weights in 4 bits.

use std::collections::HashMap;
use std::io;
use std::path::Path;

use burn_nvfp4::export::{AmaxNote, ExportError, PartDtype, ServingFormat};
use burn_nvfp4::format::PackedMatrix;
use safetensors::tensor::Dtype;

use super::stream::{Announced, StreamedFile};

/// The tensors that a file will have.
#[derive(Debug)]
pub(crate) struct FilePlan {
    format: ServingFormat,
    tensors: Vec<Announced>,
    note: AmaxNote,
}

/// A file in the making.
#[derive(Debug)]
pub(crate) struct ServedFile {
    format: ServingFormat,
    file: StreamedFile,
    note: AmaxNote,
}

impl FilePlan {
    pub(crate) fn new(format: ServingFormat) -> Self {
        Self {
            format,
            tensors: Vec::new(),
            note: AmaxNote::default(),
        }
    }

    /// Adds a tensor that stays as it is.
    pub(crate) fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize]) {
        self.tensors.push(Announced {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        });
    }

    /// Adds a linear whose weight `[d_output, d_input]` is in 4 bits.
    pub(crate) fn add_weight(&mut self, linear: &str, d_output: usize, d_input: usize) {
        self.note.reserve(linear);
        for part in self.format.layout(d_output, d_input) {
            let dtype = match part.dtype {
                PartDtype::U8 => Dtype::U8,
                PartDtype::E4m3 => Dtype::F8_E4M3,
                PartDtype::F32 => Dtype::F32,
            };
            self.add(&format!("{linear}.{}", part.suffix), dtype, &part.shape);
        }
    }

    /// Bytes of the tensors so far.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |t: &Announced| t.shape.iter().product::<usize>() * t.dtype.bitsize() / 8;
        self.tensors.iter().map(|tensor| bytes(tensor) as u64).sum()
    }

    /// The names of the tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.name.as_str())
    }

    /// Makes room for the file.
    pub(crate) fn create(self, path: &Path) -> io::Result<ServedFile> {
        let file = StreamedFile::create(path, self.tensors, &about(&self.note))?;
        Ok(ServedFile {
            format: self.format,
            file,
            note: self.note,
        })
    }
}

impl ServedFile {
    /// Writes a tensor that stays as it is.
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file.write(name, bytes)
    }

    /// Writes the weight of a linear.
    ///
    /// # Errors
    /// What the file system says, or [`ExportError`] if the matrix is not in the served form.
    pub(crate) fn write_weight(&mut self, linear: &str, matrix: &PackedMatrix) -> io::Result<()> {
        let parts = self.format.split(matrix);
        let parts = parts.map_err(|error: ExportError| io::Error::other(error))?;
        let [codes, scales, tensor] = self
            .format
            .suffixes()
            .map(|suffix| format!("{linear}.{suffix}"));
        self.file.write(&codes, parts.codes)?;
        self.file.write(&scales, parts.scales)?;
        self.file.write(&tensor, &parts.tensor.to_le_bytes())?;
        self.note.insert(linear, matrix);
        Ok(())
    }

    /// Completes the file.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.file.finish(&about(&self.note))
    }
}

/// The free-form metadata; transformers refuses files without the first entry.
fn about(note: &AmaxNote) -> HashMap<String, String> {
    let mut about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    if !note.is_empty() {
        about.insert(AmaxNote::KEY.to_owned(), note.encode());
    }
    about
}
