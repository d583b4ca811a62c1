//! Documents of a text file: the whole file, what lies between blank lines, or between marks.

use std::ops::Range;
use std::sync::Arc;

use memchr::memmem;

use super::{Document, Documents, Input, Text, whole};
use crate::data::DataError;

/// What one document of a text file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextDocuments {
    /// The whole file.
    File,
    /// Lines between blank ones, which are in no document.
    BlankLine,
    /// What lies between occurrences of this mark, which is in no document.
    Mark(String),
}

/// The documents of a file.
pub(super) fn documents(input: &Input, kind: TextDocuments) -> Result<Documents, DataError> {
    let text = Arc::new(whole(input)?);
    let size = input.size;
    let (mut at, mut told) = (0, 0);
    Ok(Box::new(std::iter::from_fn(move || {
        if at >= text.len() {
            return None;
        }
        let (range, next) = match &kind {
            TextDocuments::File => (at..text.len(), text.len()),
            TextDocuments::BlankLine => paragraph(&text, at),
            TextDocuments::Mark(mark) => marked(&text, at, mark),
        };
        at = next;
        // A packed file is smaller than its text: its size is told in proportion.
        let read = u128::from(size) * next as u128 / text.len().max(1) as u128;
        let read = u64::try_from(read).unwrap_or(size);
        let document = Document {
            text: text.clone(),
            range,
            read: read - told,
        };
        told = read;
        Some(Ok(document))
    })))
}

/// The text from `at` to the next mark, and where to go on. An empty mark is in no text.
fn marked(text: &Text, at: usize, mark: &str) -> (Range<usize>, usize) {
    let rest = text.bytes(at..text.len());
    let found = (!mark.is_empty()).then(|| memmem::find(rest, mark.as_bytes()));
    match found.flatten() {
        Some(found) => (at..at + found, at + found + mark.len()),
        None => (at..text.len(), text.len()),
    }
}

/// The lines from `at` to the next blank one, without the last line end, and where to go on.
fn paragraph(text: &Text, at: usize) -> (Range<usize>, usize) {
    let (mut start, mut end, mut next) = (None, at, at);
    while next < text.len() {
        let rest = text.bytes(next..text.len());
        let line = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let blank = rest[..line].iter().all(u8::is_ascii_whitespace);
        let behind = (next + line + 1).min(text.len());
        match (blank, start) {
            (false, None) => (start, end) = (Some(next), next + line),
            (false, Some(_)) => end = next + line,
            (true, None) => {}
            // Blank lines behind it belong to the gap, so that none is taken for a document.
            (true, Some(_)) => break,
        }
        next = behind;
    }
    let start = start.unwrap_or(next);
    (start..end.max(start), skip_blank(text, next))
}

/// Where the next line that is not blank begins.
fn skip_blank(text: &Text, at: usize) -> usize {
    let mut next = at;
    while next < text.len() {
        let rest = text.bytes(next..text.len());
        let line = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        if !rest[..line].iter().all(u8::is_ascii_whitespace) {
            break;
        }
        next = (next + line + 1).min(text.len());
    }
    next
}
