//! Several files in one input, as text that is easy to mutate and to read.
//!
//! ```text
//! === config.json
//! {"vocab_size": 16}
//! === model.safetensors.header
//! {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
//! === model.safetensors.data
//! ....
//! ```
//!
//! A line that begins with `=== ` names what follows, up to the line end before the next such
//! line. A safetensors file may come as it is, or as header and data, whose length is then put in
//! front: a mutation of the header would otherwise end at its length.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const MARK: &[u8] = b"=== ";

/// An input.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    parts: Vec<(&'a [u8], &'a [u8])>,
}

impl<'a> Bundle<'a> {
    /// Cuts an input into its parts; what stands before the first is none.
    pub fn of(input: &'a [u8]) -> Self {
        let mut starts = Vec::new();
        let mut at = 0;
        for line in input.split_inclusive(|&byte| byte == b'\n') {
            if line.starts_with(MARK) {
                starts.push((at, line.len()));
            }
            at += line.len();
        }
        let ends = starts.iter().skip(1).map(|&(start, _)| start);
        let ends = ends.chain([input.len() + 1]);
        let parts = starts.iter().zip(ends).map(|(&(start, line), end)| {
            let name = input[start + MARK.len()..start + line].trim_ascii();
            // Without the line end before the next mark.
            let end = (end - 1).max(start + line).min(input.len());
            (name, &input[start + line..end])
        });
        Self {
            parts: parts.collect(),
        }
    }

    /// The last part of a name.
    pub fn part(&self, name: &str) -> Option<&'a [u8]> {
        let mut parts = self.parts.iter().rev();
        let found = parts.find(|(found, _)| *found == name.as_bytes());
        found.map(|(_, bytes)| *bytes)
    }

    /// A part as text; empty if there is none.
    pub fn text(&self, name: &str) -> Cow<'a, str> {
        String::from_utf8_lossy(self.part(name).unwrap_or_default())
    }

    /// The bytes of a file, put together if it comes as header and data.
    pub fn file(&self, name: &str) -> Option<Cow<'a, [u8]>> {
        if let Some(bytes) = self.part(name) {
            return Some(Cow::Borrowed(bytes));
        }
        let header = self.part(&format!("{name}.header"))?;
        let data = self.part(&format!("{name}.data")).unwrap_or_default();
        let length = (header.len() as u64).to_le_bytes();
        Some(Cow::Owned([&length, header, data].concat()))
    }
}

/// A folder that is laid anew for every input.
#[derive(Debug)]
pub struct Desk {
    folder: TempDir,
}

impl Desk {
    /// An empty folder below the system's for temporary files.
    ///
    /// # Panics
    /// If none can be made.
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder for temporary files is needed"),
        }
    }

    /// Where something lies.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Lays these files as the bundle has them; those that it does not have are removed.
    ///
    /// # Panics
    /// If the file system refuses.
    pub fn lay(&self, bundle: &Bundle<'_>, names: &[&str]) {
        for name in names {
            match bundle.file(name) {
                Some(bytes) => self.write(&self.path(name), &bytes),
                None => drop(fs::remove_file(self.path(name))),
            }
        }
    }

    /// Writes a file, with the folders on the way.
    ///
    /// # Panics
    /// If the file system refuses.
    pub fn write(&self, path: &Path, bytes: &[u8]) {
        if fs::write(path, bytes).is_err() {
            let folder = path.parent().unwrap_or(path);
            fs::create_dir_all(folder).expect("a folder of temporary files can be written");
            fs::write(path, bytes).expect("a temporary file can be written");
        }
    }

    /// Removes a folder that a target has made, if it is there.
    pub fn clear(&self, name: &str) {
        // A folder that stays makes the next writing fail, which the target reports.
        drop(fs::remove_dir_all(self.path(name)));
    }
}

impl Default for Desk {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_between_marks_and_the_last_of_a_name_counts() {
        let bundle = Bundle::of(b"x\n=== a\n1\n2\n=== b\n\n=== c\n=== a\n3");
        assert_eq!(bundle.part("a"), Some(&b"3"[..]));
        assert_eq!(bundle.part("b"), Some(&b""[..]));
        assert_eq!(bundle.part("c"), Some(&b""[..]));
        assert_eq!(bundle.part("d"), None);
        assert_eq!(Bundle::of(b"=== a\n1\n2\n").part("a"), Some(&b"1\n2\n"[..]));
        assert_eq!(Bundle::of(b"=== a").part("a"), Some(&b""[..]));
    }

    #[test]
    fn header_and_data_become_a_safetensors_file() {
        let bundle = Bundle::of(b"=== m.safetensors.header\n{}\n=== m.safetensors.data\nabc");
        let file = bundle.file("m.safetensors").expect("both parts are there");
        assert_eq!(&*file, b"\x02\0\0\0\0\0\0\0{}abc");
    }
}
