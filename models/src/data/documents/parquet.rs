//! Documents of a parquet file: the values of one column of strings, row group by row group.
//!
//! Read with the `parquet` crate's column readers, a page at a time; arrow is not needed. A null is
//! an empty document.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Type;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::{Document, Documents, Input, Text};
use crate::data::DataError;

/// Rows that are read at once.
const ROWS: usize = 256;

/// The documents of a file.
pub(super) fn documents(input: &Input, field: &str) -> Result<Documents, DataError> {
    let path: Arc<Path> = input.path.clone().into();
    let mut rows = Rows::open(input, field)?;
    let (mut number, mut failed) = (0u64, false);
    Ok(Box::new(std::iter::from_fn(move || {
        if failed {
            return None;
        }
        number += 1;
        let found = rows.next_text().transpose()?;
        failed = found.is_err();
        let document = found.map(|(text, read)| {
            let range = 0..text.len();
            let text = Arc::new(Text::read(text, &path));
            Document { text, range, read }
        });
        Some(document.map_err(|reason| DataError::Record {
            path: path.to_path_buf(),
            unit: "row",
            number,
            reason,
        }))
    })))
}

/// Goes through the rows of a file.
struct Rows {
    file: SerializedFileReader<File>,
    column: usize,
    /// Definition level of a value that is there; 0 if none may be missing.
    present: i16,
    next_group: usize,
    group: Option<ColumnReaderImpl<ByteArrayType>>,
    /// Compressed bytes of the column in the group in hand, until they are told.
    read: u64,
    /// Rows that were read and not handed out, last first.
    rows: Vec<Option<ByteArray>>,
}

impl Rows {
    fn open(input: &Input, field: &str) -> Result<Self, DataError> {
        let path = &input.path;
        let unusable = |reason: String| DataError::Columns {
            path: path.clone(),
            reason,
        };
        let file = File::open(path).map_err(DataError::io(path, "read"))?;
        let file = SerializedFileReader::new(file).map_err(|error| unusable(one_line(&error)))?;
        let schema = file.metadata().file_metadata().schema_descr();
        let mut columns = schema.columns().iter();
        let Some(column) = columns.position(|column| column.path().string() == field) else {
            let names: Vec<_> = schema.columns().iter().map(|c| c.path().string()).collect();
            let names = names.join(", ");
            return Err(unusable(format!("no column {field:?}; it has {names}")));
        };
        let description = schema.column(column);
        let is_text = description.physical_type() == Type::BYTE_ARRAY;
        if !is_text || description.max_rep_level() > 0 {
            let kind = description.physical_type();
            return Err(unusable(format!(
                "column {field:?} is {kind}, not one text a row"
            )));
        }
        Ok(Self {
            present: description.max_def_level(),
            file,
            column,
            next_group: 0,
            group: None,
            read: 0,
            rows: Vec::new(),
        })
    }

    /// The text of the next row, and how much of the file was read for it.
    fn next_text(&mut self) -> Result<Option<(String, u64)>, String> {
        while self.rows.is_empty() {
            if !self.fill().map_err(|error| one_line(&error))? {
                return Ok(None);
            }
        }
        let text = match self.rows.pop().flatten() {
            None => String::new(),
            Some(value) => String::from_utf8(value.data().to_vec()).map_err(|error| {
                format!("invalid UTF-8 at byte {}", error.utf8_error().valid_up_to())
            })?,
        };
        Ok(Some((text, std::mem::take(&mut self.read))))
    }

    /// Reads some rows; false behind the last group.
    fn fill(&mut self) -> Result<bool, ParquetError> {
        let Some(group) = &mut self.group else {
            if self.next_group >= self.file.num_row_groups() {
                return Ok(false);
            }
            let group = self.file.get_row_group(self.next_group)?;
            self.next_group += 1;
            self.read += u64::try_from(group.metadata().compressed_size()).unwrap_or(0);
            return match group.get_column_reader(self.column)? {
                ColumnReader::ByteArrayColumnReader(reader) => {
                    self.group = Some(reader);
                    Ok(true)
                }
                ColumnReader::BoolColumnReader(_)
                | ColumnReader::Int32ColumnReader(_)
                | ColumnReader::Int64ColumnReader(_)
                | ColumnReader::Int96ColumnReader(_)
                | ColumnReader::FloatColumnReader(_)
                | ColumnReader::DoubleColumnReader(_)
                | ColumnReader::FixedLenByteArrayColumnReader(_) => Err(ParquetError::General(
                    "a row group has another type of column than the file".to_owned(),
                )),
            };
        };
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let wanted = (self.present > 0).then_some(&mut levels);
        let (rows, _, _) = group.read_records(ROWS, wanted, None, &mut values)?;
        if rows == 0 {
            self.group = None;
            return Ok(true);
        }
        if self.present > 0 {
            let mut values = values.into_iter();
            let row = |level: i16| {
                if level == self.present {
                    values.next()
                } else {
                    None
                }
            };
            self.rows = levels.into_iter().map(row).collect();
        } else {
            self.rows = values.into_iter().map(Some).collect();
        }
        self.rows.reverse();
        Ok(true)
    }
}

fn one_line(error: &ParquetError) -> String {
    error
        .to_string()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}
