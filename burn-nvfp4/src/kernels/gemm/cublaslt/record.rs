//! Choices that outlive a process: with the same file, processes multiply by the same algorithms.
//!
//! Which of two nearly equal algorithms is the fastest changes from process to process, and with it
//! the order of sums and the last bits of every result. A file that [`remember`] names holds one
//! line for each product that was tried:
//!
//! ```text
//! INDEX <tab> OFFERED <tab> PRODUCT
//! ```
//!
//! 1. A product for which the heuristic offers `OFFERED` algorithms takes that at `INDEX`, untimed.
//!    `PRODUCT` names the library's version.
//! 2. A new choice is appended. Of several lines for the same offers the first counts, so that
//!    processes which write at the same time agree from the next one on.
//! 3. Lines of another form are passed over. Without a file, or if it cannot be written, each
//!    process chooses for itself.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The file of this process.
static RECORD: Mutex<Option<Record>> = Mutex::new(None);

/// Has this process take its algorithms from a file, and keep there what it chooses. For files of
/// one kind of device; products that were multiplied before keep their algorithms.
///
/// # Errors
/// If there is such a file and it cannot be read. Nothing is kept then.
pub fn remember(path: PathBuf) -> io::Result<()> {
    let record = Record::read(path)?;
    *RECORD.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
    Ok(())
}

/// The algorithm that was chosen for a product, out of as many.
pub(super) fn known(product: &str, offered: usize) -> Option<usize> {
    let record = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
    record.as_ref()?.find(product, offered)
}

/// Keeps a choice, and returns that which counts: another device's of this process may have come
/// first.
pub(super) fn keep(product: &str, index: usize, offered: usize) -> usize {
    let mut record = RECORD.lock().unwrap_or_else(PoisonError::into_inner);
    match record.as_mut() {
        None => index,
        Some(record) => record.keep(product, index, offered),
    }
}

/// Offers for a product, as a line has them.
fn offers(product: &str, offered: usize) -> String {
    format!("{offered}\t{product}")
}

#[derive(Debug)]
struct Record {
    path: PathBuf,
    /// Index by [`offers`].
    choices: HashMap<String, usize>,
}

impl Record {
    fn read(path: PathBuf) -> io::Result<Self> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let mut choices = HashMap::new();
        for (offers, index) in text.lines().filter_map(choice) {
            choices.entry(offers.to_owned()).or_insert(index);
        }
        Ok(Self { path, choices })
    }

    fn find(&self, product: &str, offered: usize) -> Option<usize> {
        self.choices.get(&offers(product, offered)).copied()
    }

    fn keep(&mut self, product: &str, index: usize, offered: usize) -> usize {
        if let Some(first) = self.find(product, offered) {
            return first;
        }
        let offers = offers(product, offered);
        let line = format!("{index}\t{offers}\n");
        self.choices.insert(offers, index);
        // One write a line: appended lines of several processes do not mix. What cannot be kept is
        // chosen anew by the next process.
        let folder = self.path.parent().map(fs::create_dir_all).transpose();
        let file = folder.and_then(|_| {
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(&self.path)
        });
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        index
    }
}

/// A line as offers and index.
fn choice(line: &str) -> Option<(&str, usize)> {
    let (index, offers) = line.split_once('\t')?;
    let (offered, _product) = offers.split_once('\t')?;
    let index = index.parse().ok()?;
    (index < offered.parse().ok()?).then_some((offers, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kind/choices.txt");
        (folder, path)
    }

    #[test]
    fn the_next_process_takes_what_was_chosen() {
        let (_folder, path) = scratch();
        let mut record = Record::read(path.clone()).unwrap();
        assert_eq!(record.find("2x3x4", 8), None);
        assert_eq!(record.keep("2x3x4", 5, 8), 5);
        assert_eq!(record.keep("2x3x4", 6, 8), 5, "the first counts");
        assert_eq!(record.keep("2x3x4", 1, 7), 1, "among other offers");
        assert_eq!(record.keep("with\ttabs", 0, 1), 0);
        let next = Record::read(path).unwrap();
        assert_eq!(next.find("2x3x4", 8), Some(5));
        assert_eq!(next.find("with\ttabs", 1), Some(0));
        assert_eq!(next.find("2x3x4", 7), Some(1));
        assert_eq!(next.find("2x3x4", 6), None);
    }

    #[test]
    fn what_is_no_line_of_a_record_is_passed_over() {
        let (folder, _) = scratch();
        let path = folder.path().join("choices.txt");
        let text =
            "x\n8\t8\tall but one\n-1\t8\tproduct\n3\t8\n\n3\t8\tproduct\n2\t8\tproduct\n7\t";
        fs::write(&path, text).unwrap();
        let record = Record::read(path).unwrap();
        let expected = HashMap::from([("8\tproduct".to_owned(), 3)]);
        assert_eq!(record.choices, expected);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_and_one_that_cannot_be_written_is_none() {
        let (folder, _) = scratch();
        assert!(Record::read(folder.path().to_owned()).is_err());
        let below_a_file = folder.path().join("file");
        fs::write(&below_a_file, "").unwrap();
        let mut record = Record {
            path: below_a_file.join("choices.txt"),
            choices: HashMap::new(),
        };
        assert_eq!(record.keep("2x3x4", 5, 8), 5);
        assert_eq!(record.find("2x3x4", 8), Some(5));
    }
}
