//! The files of a checkpoint: tensors written one by one with their checksum, and read back only
//! if every checksum holds.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use burn::tensor::{DType, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorInfo};

use super::{NamedTensors, RunError};
use crate::checkpoint::files;
use crate::data::fingerprint::Fingerprint;

/// Every parameter.
pub(super) const PARAMETERS: &str = "parameters.safetensors";
/// Both moments of every parameter.
pub(super) const MOMENTS: &str = "moments.safetensors";
/// What the arithmetic carries from step to step; not every checkpoint has it.
pub(super) const CARRIED: &str = "carried.safetensors";
/// What is not tensors.
pub(super) const STATE: &str = "state.json";
/// Checksums.
pub(super) const SUMS: &str = "SUMS";

/// The lines of [`SUMS`] in the making.
#[derive(Debug, Default)]
pub(super) struct Sums {
    lines: String,
    /// Bytes of the files so far.
    pub(super) bytes: u64,
}

impl Sums {
    /// Writes and syncs a file of a checkpoint, and notes its checksum.
    pub(super) fn write(
        &mut self,
        folder: &Path,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        let file = BufWriter::with_capacity(1 << 20, File::create(folder.join(name))?);
        let mut summed = Summed {
            file,
            sum: Fingerprint::default(),
            bytes: 0,
        };
        fill(&mut summed)?;
        let Summed { file, sum, bytes } = summed;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        self.bytes += bytes;
        self.lines += &line(sum.finish(), bytes, name);
        Ok(())
    }

    /// Writes and syncs [`SUMS`]: a line per file, then one for these lines.
    pub(super) fn finish(&self, folder: &Path) -> io::Result<()> {
        let own = own_line(&self.lines);
        crate::durable::write_synced(&folder.join(SUMS), (self.lines.clone() + &own).as_bytes())
    }
}

fn line(sum: u64, bytes: u64, name: &str) -> String {
    format!("{sum:016x} {bytes} {name}\n")
}

fn own_line(lines: &str) -> String {
    let bytes = lines.as_bytes();
    line(Fingerprint::of(bytes), bytes.len() as u64, SUMS)
}

/// Writes through, and sums up what it writes.
struct Summed {
    file: BufWriter<File>,
    sum: Fingerprint,
    bytes: u64,
}

impl Write for Summed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.sum.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Checks that tensors can be written.
///
/// # Errors
/// [`RunError::Dtype`] for the first that is not f32.
pub(super) fn check_dtypes(tensors: &NamedTensors) -> Result<(), RunError> {
    match tensors.iter().find(|(_, data)| data.dtype != DType::F32) {
        None => Ok(()),
        Some((name, data)) => Err(RunError::Dtype {
            name: name.clone(),
            dtype: format!("{:?}", data.dtype),
        }),
    }
}

/// Writes f32 tensors as a safetensors file, without a copy of them all in memory.
pub(super) fn write_tensors(tensors: &NamedTensors, out: &mut dyn Write) -> io::Result<()> {
    let mut offset = 0;
    let infos = tensors.iter().map(|(name, data)| {
        let start = offset;
        offset += data.as_bytes().len();
        let info = TensorInfo {
            dtype: Dtype::F32,
            shape: data.shape.to_vec(),
            data_offsets: (start, offset),
        };
        (name.clone(), info)
    });
    let header = files::header(None, infos.collect())?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for data in tensors.values() {
        out.write_all(data.as_bytes())?;
    }
    Ok(())
}

/// Reads every file of a checkpoint and compares it with [`SUMS`]; all problems at once.
///
/// # Errors
/// [`RunError::Damaged`].
pub(super) fn read_checked(path: &Path) -> Result<HashMap<String, Vec<u8>>, RunError> {
    let damaged = |problems| RunError::Damaged {
        path: path.to_owned(),
        problems,
    };
    let sums = match fs::read(path.join(SUMS)) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => return Err(damaged(vec![format!("{SUMS}: {error}")])),
    };
    let own = sums
        .trim_end_matches('\n')
        .rfind('\n')
        .map_or(0, |at| at + 1);
    let (lines, own) = sums.split_at(own);
    if own != own_line(lines) {
        return Err(damaged(vec![format!(
            "{SUMS}: its own checksum does not hold"
        )]));
    }
    let wanted = [PARAMETERS, MOMENTS, STATE];
    let (mut files, mut problems) = (HashMap::new(), Vec::new());
    for line in lines.lines() {
        let mut fields = line.splitn(3, ' ');
        let (Some(sum), Some(size), Some(name)) = (fields.next(), fields.next(), fields.next())
        else {
            problems.push(format!("{SUMS}: line {line:?}"));
            continue;
        };
        // The names are outside input: they may not lead to other files, some of which never end.
        if !wanted.contains(&name) && name != CARRIED {
            problems.push(format!(
                "{SUMS}: it lists {name:?}, which is no part of one"
            ));
            continue;
        }
        match fs::read(path.join(name)) {
            Err(error) => problems.push(format!("{name}: {error}")),
            Ok(bytes) if bytes.len().to_string() != size => {
                problems.push(format!("{name}: {} bytes instead of {size}", bytes.len()));
            }
            Ok(bytes) if format!("{:016x}", Fingerprint::of(&bytes)) != sum => {
                problems.push(format!("{name}: the checksum does not hold"));
            }
            Ok(bytes) => {
                files.insert(name.to_owned(), bytes);
            }
        }
    }
    if problems.is_empty() {
        let missing = wanted.iter().filter(|name| !files.contains_key(**name));
        problems.extend(missing.map(|name| format!("{name}: not listed in {SUMS}")));
    }
    if problems.is_empty() {
        Ok(files)
    } else {
        Err(damaged(problems))
    }
}

/// Reads a safetensors file of f32 tensors.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read_tensors(bytes: &[u8]) -> Result<NamedTensors, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut tensors = NamedTensors::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(format!("{name}: dtype {:?}, F32 expected", view.dtype()));
        }
        let (values, _) = view.data().as_chunks::<4>();
        let values: Vec<f32> = values
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        tensors.insert(
            name.to_owned(),
            TensorData::new(values, view.shape().to_vec()),
        );
    }
    Ok(tensors)
}
