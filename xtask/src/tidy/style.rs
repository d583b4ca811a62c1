//! The form of a source file.

use super::SourceFile;

/// Most lines of a file, without its unit tests.
const MAX_LINES: usize = 600;
/// Most lines of a crate's face.
const MAX_LIB_LINES: usize = 80;
/// Most columns.
const MAX_WIDTH: usize = 100;

/// The rules on one file.
pub(super) const RULES: &[fn(&SourceFile) -> Vec<String>] =
    &[header, length, width, unfinished, module_file];

/// A file opens with a `//!` header that says what is in it, or includes one.
fn header(file: &SourceFile) -> Vec<String> {
    let opens = file.text.starts_with("//! ") || file.text.starts_with("#![doc = include_str!");
    if opens {
        Vec::new()
    } else {
        vec![format!("{}: no `//!` header", file.path)]
    }
}

/// A file has at most [`MAX_LINES`] lines, a `lib.rs` at most [`MAX_LIB_LINES`].
fn length(file: &SourceFile) -> Vec<String> {
    let is_face = file.path.ends_with("/lib.rs");
    let most = if is_face { MAX_LIB_LINES } else { MAX_LINES };
    let lines = file
        .text
        .lines()
        .take_while(|line| !line.starts_with("mod tests {"))
        .count();
    if lines <= most {
        Vec::new()
    } else {
        vec![format!(
            "{}: {lines} lines without tests, at most {most}",
            file.path
        )]
    }
}

/// A line has at most [`MAX_WIDTH`] columns, unless it holds an address.
fn width(file: &SourceFile) -> Vec<String> {
    let too_wide = |line: &str| line.chars().count() > MAX_WIDTH && !line.contains("https://");
    file.text
        .lines()
        .enumerate()
        .filter(|(_, line)| too_wide(line))
        .map(|(index, _)| format!("{}:{}: over {MAX_WIDTH} columns", file.path, index + 1))
        .collect()
}

/// What is left to do names its issue: `(#123)` follows the word.
fn unfinished(file: &SourceFile) -> Vec<String> {
    // Spelled so that this file keeps its own rule.
    let word = concat!("TO", "DO");
    let bare = |line: &str| {
        let mut rest = line.split(word).skip(1);
        rest.any(|after| {
            let number = after
                .strip_prefix("(#")
                .and_then(|after| after.split_once(')'));
            number.is_none_or(|(number, _)| number.parse::<u32>().is_err())
        }) || line.contains(concat!("FIX", "ME"))
    };
    file.text
        .lines()
        .enumerate()
        .filter(|(_, line)| bare(line))
        .map(|(index, _)| {
            format!(
                "{}:{}: unfinished without an issue: write {word}(#123)",
                file.path,
                index + 1
            )
        })
        .collect()
}

/// A module lies in `foo.rs` beside `foo/`, not in `foo/mod.rs`.
///
/// `clippy::mod_module_files` sees only files that are compiled.
fn module_file(file: &SourceFile) -> Vec<String> {
    match file.path.strip_suffix("/mod.rs") {
        Some(module) => vec![format!("{}: belongs in {module}.rs", file.path)],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(path: &str, text: &str) -> Vec<String> {
        let file = SourceFile {
            path: path.to_owned(),
            text: text.to_owned(),
        };
        RULES.iter().flat_map(|rule| rule(&file)).collect()
    }

    #[test]
    fn a_tidy_file_has_no_problems() {
        let text = format!("//! What it does.\n// {}(#12): why.\n", concat!("TO", "DO"));
        assert_eq!(problems("models/src/nn/ssd.rs", &text), [""; 0]);
        assert_eq!(
            problems("a/src/lib.rs", "#![doc = include_str!(\"../README.md\")]\n"),
            [""; 0]
        );
    }

    #[test]
    fn a_file_without_a_header_is_reported() {
        let found = problems("a/src/b.rs", "use std::fs;\n");
        assert_eq!(found, ["a/src/b.rs: no `//!` header"]);
    }

    #[test]
    fn a_long_file_is_reported_without_its_tests() {
        let long = format!("//! Long.\n{}", "\n".repeat(MAX_LINES));
        assert_eq!(problems("a/src/b.rs", &long).len(), 1);
        let tested = format!("//! Long.\nmod tests {{\n{}}}\n", "\n".repeat(MAX_LINES));
        assert_eq!(problems("a/src/b.rs", &tested), [""; 0]);
        let face = format!("//! Long.\n{}", "\n".repeat(MAX_LIB_LINES));
        assert_eq!(
            problems("a/src/lib.rs", &face),
            ["a/src/lib.rs: 81 lines without tests, at most 80"]
        );
    }

    #[test]
    fn a_wide_line_is_reported_in_columns_not_bytes() {
        let wide = |c: &str, n: usize| problems("a/b.rs", &format!("//! B.\n{}\n", c.repeat(n)));
        assert_eq!(wide("é", 100), [""; 0]);
        assert_eq!(wide("é", 101), ["a/b.rs:2: over 100 columns"]);
        let address = format!("//! B.\n// https://{}\n", "x".repeat(100));
        assert_eq!(problems("a/b.rs", &address), [""; 0]);
    }

    #[test]
    fn unfinished_work_without_an_issue_is_reported() {
        for text in [
            concat!("TO", "DO"),
            concat!("TO", "DO: later"),
            concat!("TO", "DO(#)"),
            concat!("TO", "DO(me)"),
            concat!("TO", "DO(#1), TO", "DO"),
            concat!("FIX", "ME(#1)"),
        ] {
            let found = problems("a/b.rs", &format!("//! B.\n// {text}\n"));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
        }
    }

    #[test]
    fn a_module_file_is_reported() {
        assert_eq!(
            problems("a/b/mod.rs", "//! B.\n"),
            ["a/b/mod.rs: belongs in a/b.rs"]
        );
    }
}
