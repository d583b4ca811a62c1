//! A safetensors file whose tensors come one at a time, in any order.
//!
//! The `safetensors` crate writes tensors in the order of its header, which puts the scales of all
//! weights before the codes of all weights: each weight would be quantized twice, or all of them be
//! kept. Here the header (the crate's own) is written first and each tensor goes to its place when
//! it is ready. The layout is the crate's: wide dtypes first, so that every tensor is aligned.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorInfo};

use crate::checkpoint::files;

/// Bytes handed to the file at once.
const PIECE: usize = 1 << 24;

/// A file in the making.
#[derive(Debug)]
pub(crate) struct StreamedFile {
    file: File,
    path: PathBuf,
    /// Every tensor and its place.
    infos: Vec<(String, TensorInfo)>,
    /// Length of the header.
    header: usize,
    /// Where the bytes of each tensor that is not written yet go.
    missing: BTreeMap<String, (u64, usize)>,
}

/// Name, dtype and shape of a tensor that will come.
#[derive(Clone, Debug)]
pub(crate) struct Announced {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

impl StreamedFile {
    /// Makes room for the header and these tensors. `about` is the free-form metadata, or stands
    /// for it: that of [`StreamedFile::finish`] has to have the same length.
    pub(crate) fn create(
        path: &Path,
        mut tensors: Vec<Announced>,
        about: &HashMap<String, String>,
    ) -> io::Result<Self> {
        tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
        let mut offset = 0;
        let mut infos = Vec::new();
        let mut missing = BTreeMap::new();
        for tensor in tensors {
            let bytes = tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8;
            let data_offsets = (offset, offset + bytes);
            missing.insert(tensor.name.clone(), (offset as u64, bytes));
            infos.push((
                tensor.name,
                TensorInfo {
                    dtype: tensor.dtype,
                    shape: tensor.shape,
                    data_offsets,
                },
            ));
            offset += bytes;
        }
        let header = announce(about, &infos)?.len();
        let start = 8 + header as u64;
        missing
            .values_mut()
            .for_each(|(offset, _)| *offset += start);
        let file = File::create(path)?;
        file.set_len(start + offset as u64)?;
        Ok(Self {
            file,
            path: path.into(),
            infos,
            header,
            missing,
        })
    }

    /// Writes one of the announced tensors.
    ///
    /// # Panics
    /// If it was not announced, with another size, or written before.
    pub(crate) fn write(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.write_pieces(name, bytes.len(), |range, file| {
            file.write_all(&bytes[range])
        })
    }

    /// Writes one of the announced tensors, in pieces that `piece` writes.
    ///
    /// # Panics
    /// As [`StreamedFile::write`].
    pub(crate) fn write_pieces(
        &mut self,
        name: &str,
        len: usize,
        mut piece: impl FnMut(std::ops::Range<usize>, &mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        let announced = self.missing.remove(name);
        let (offset, bytes) = announced.unwrap_or_else(|| panic!("{name} is not to be written"));
        assert!(
            bytes == len,
            "{name} has {len} bytes, {bytes} were announced"
        );
        self.file.seek(SeekFrom::Start(offset))?;
        for start in (0..len).step_by(PIECE) {
            piece(start..len.min(start + PIECE), &mut self.file)?;
        }
        Ok(())
    }

    /// Writes the header and syncs the file.
    ///
    /// # Panics
    /// If an announced tensor was not written, or the metadata is longer or shorter than it was.
    pub(crate) fn finish(mut self, about: &HashMap<String, String>) -> io::Result<()> {
        let path = self.path.display();
        assert!(self.missing.is_empty(), "{path} lacks {:?}", self.missing);
        let header = announce(about, &self.infos)?;
        assert!(
            header.len() == self.header,
            "the metadata of {path} has another length"
        );
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&(header.len() as u64).to_le_bytes())?;
        self.file.write_all(&header)?;
        self.file.sync_all()
    }
}

/// The header of these tensors.
fn announce(
    about: &HashMap<String, String>,
    infos: &[(String, TensorInfo)],
) -> io::Result<Vec<u8>> {
    let infos = infos.iter().map(|(name, info)| {
        let TensorInfo {
            dtype,
            shape,
            data_offsets,
        } = info;
        let info = TensorInfo {
            dtype: *dtype,
            shape: shape.clone(),
            data_offsets: *data_offsets,
        };
        (name.clone(), info)
    });
    files::header(Some(about.clone()), infos.collect())
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    fn announced(name: &str, dtype: Dtype, shape: &[usize]) -> Announced {
        Announced {
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        }
    }

    #[test]
    fn tensors_written_in_any_order_read_back_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.safetensors");
        let tensors = vec![
            announced("codes", Dtype::U8, &[3]),
            announced("weight", Dtype::BF16, &[2, 2]),
            announced("scale", Dtype::F32, &[]),
            announced("scales", Dtype::F8_E4M3, &[1]),
            announced("empty", Dtype::F32, &[0]),
        ];
        let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let mut file = StreamedFile::create(&path, tensors, &about).unwrap();
        file.write("scales", &[9]).unwrap();
        file.write("weight", &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
        file.write("codes", &[7, 7, 7]).unwrap();
        file.write("empty", &[]).unwrap();
        file.write("scale", &1.5_f32.to_le_bytes()).unwrap();
        file.finish(&about).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.tensor("codes").unwrap().data(), [7, 7, 7]);
        assert_eq!(read.tensor("scales").unwrap().data(), [9]);
        assert_eq!(read.tensor("scale").unwrap().data(), 1.5_f32.to_le_bytes());
        let weight = read.tensor("weight").unwrap();
        assert_eq!(weight.data(), [1, 2, 3, 4, 5, 6, 7, 8]);
        let offset = weight.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(offset % 2, 0);
    }

    #[test]
    #[should_panic(expected = "lacks")]
    fn a_file_without_one_of_its_tensors_is_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = vec![announced("weight", Dtype::F32, &[2])];
        let path = dir.path().join("out.safetensors");
        let about = HashMap::new();
        let file = StreamedFile::create(&path, tensors, &about).unwrap();
        file.finish(&about).unwrap();
    }
}
