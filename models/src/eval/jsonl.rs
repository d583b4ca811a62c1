//! Files of one JSON object a line, read so that what is wrong is named with its line.

use std::fs;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::EvalError;
use crate::data::fingerprint::Fingerprint;

/// The objects of a file with their line numbers, counted from 1; empty lines are left out.
pub(super) struct Lines<T> {
    /// Number and object of each line.
    pub(super) lines: Vec<(usize, T)>,
    /// Of the file's bytes.
    pub(super) fingerprint: u64,
}

/// Reads a file that `task` needs.
///
/// # Errors
/// [`EvalError`] for a file that is missing, unreadable or empty, and for the first line that is
/// no `T` or that `check` refuses.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    task: &'static str,
    check: impl Fn(&T) -> Result<(), String>,
) -> Result<Lines<T>, EvalError> {
    let bytes = read_bytes(path, task)?;
    let mut lines = Vec::new();
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let refused = |reason| EvalError::Line {
            path: path.to_owned(),
            line: index + 1,
            reason,
        };
        let object: T = serde_json::from_slice(line).map_err(|error| refused(reason(&error)))?;
        check(&object).map_err(refused)?;
        lines.push((index + 1, object));
    }
    if lines.is_empty() {
        return Err(EvalError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(Lines {
        lines,
        fingerprint: Fingerprint::of(&bytes),
    })
}

/// The bytes of a file that `task` needs.
pub(super) fn read_bytes(path: &Path, task: &'static str) -> Result<Vec<u8>, EvalError> {
    fs::read(path).map_err(|source| {
        let path = path.to_owned();
        if source.kind() == io::ErrorKind::NotFound {
            EvalError::Missing { path, task }
        } else {
            EvalError::Io {
                path,
                action: "read",
                source,
            }
        }
    })
}

/// serde's message; its line is always 1 here, so only the column stays.
pub(super) fn reason(error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let message = error.to_string();
    match message.strip_suffix(&place) {
        Some(message) => format!("{message} at column {}", error.column()),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<(usize, u32)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("items.jsonl");
        fs::write(&path, text).unwrap();
        let even = |&number: &u32| match number % 2 {
            0 => Ok(()),
            _ => Err("an odd number".to_owned()),
        };
        match read(&path, "numbers", even) {
            Ok(lines) => Ok(lines.lines),
            Err(error) => Err(error.to_string().rsplit_once('/').unwrap().1.to_owned()),
        }
    }

    #[test]
    fn a_broken_line_is_named_by_file_and_number() {
        assert_eq!(read_text("2\n\n4\n"), Ok(vec![(1, 2), (3, 4)]));
        let refused = |text| read_text(text).unwrap_err();
        assert_eq!(
            refused("2\n\"a\n"),
            "items.jsonl: line 2: EOF while parsing a string at column 2"
        );
        assert_eq!(
            refused("2\n\n\"two\"\n"),
            "items.jsonl: line 3: invalid type: string \"two\", expected u32 at column 5"
        );
        assert_eq!(refused("2\n3"), "items.jsonl: line 2: an odd number");
        assert_eq!(
            refused("\n \n"),
            "items.jsonl: there is nothing to evaluate in it"
        );
    }

    #[test]
    fn a_missing_file_is_named_with_the_task_that_reads_it() {
        let error = read(Path::new("none/x.jsonl"), "numbers", |_: &u32| Ok(()));
        let message = error.err().unwrap().to_string();
        assert_eq!(
            message,
            "none/x.jsonl: no such file or folder; task numbers reads it there"
        );
    }
}
