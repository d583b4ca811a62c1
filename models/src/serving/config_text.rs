//! The text of a `config.json` with one entry more or less; everything else stays as it is written,
//! numbers that JSON does not have among it.
//!
//! The text is known to parse as JSON5 (`config::lenient`), and to be an object. So it is enough to
//! see strings, comments and brackets: an entry is what lies between commas at the first level, and
//! a bracket in a string or in a comment is none.

use std::ops::Range;

use serde_json::Value;

use crate::config::lenient::Lenient;

/// The text with an entry in front, in place of all others of that key.
pub(super) fn with_entry(text: &str, key: &str, value: &Value) -> String {
    let text = without_entry(text, key);
    let entries = entries(&text);
    let value = format!("{value:#}").replace('\n', "\n  ");
    let comma = if entries.spans.is_empty() { "" } else { "," };
    let (before, after) = text.split_at(entries.start);
    format!("{before}\n  \"{key}\": {value}{comma}{after}")
}

/// The text without the entries of a key.
pub(super) fn without_entry(text: &str, key: &str) -> String {
    let Entries { start, spans } = entries(text);
    let kept = |entry: &Entry| name(&text[entry.key.clone()]).as_deref() != Some(key);
    if !spans.iter().any(kept) {
        return match spans.is_empty() {
            true => text.to_owned(),
            false => format!("{}}}\n", &text[..start]),
        };
    }
    let first = spans.first().map_or(start, |entry| entry.key.start);
    let mut out = text[..first].to_owned();
    let (mut is_first, mut end) = (true, first);
    for entry in &spans {
        if kept(entry) {
            // The comma before an entry is its own, but there is none before the first.
            let from = if is_first { entry.key.start } else { end };
            out += &text[from..entry.end];
            is_first = false;
        }
        end = entry.end;
    }
    out + &text[end..]
}

/// The entries of an object.
struct Entries {
    /// Behind its bracket.
    start: usize,
    spans: Vec<Entry>,
}

/// Where a key is written, and where its value ends.
struct Entry {
    key: Range<usize>,
    end: usize,
}

/// What a key is called, in quotes or without.
fn name(key: &str) -> Option<String> {
    let Ok(Lenient::Object(fields)) = Lenient::parse(&format!("{{{key}: 0}}")) else {
        return None;
    };
    fields.into_iter().next().map(|(name, _)| name)
}

fn entries(text: &str) -> Entries {
    let mut tokens = Tokens { text, at: 0 };
    let start = tokens.next().map_or(0, |bracket| bracket.end);
    let mut spans = Vec::new();
    while let Some(key) = tokens.next() {
        if matches!(&text[key.clone()], "," | "}") {
            continue;
        }
        // The colon, then the value: one token, or up to the bracket that closes its first.
        let mut end = tokens.next().map_or(key.end, |colon| colon.end);
        let mut depth = 0usize;
        for token in tokens.by_ref() {
            match &text[token.clone()] {
                "{" | "[" => depth += 1,
                "}" | "]" => depth = depth.saturating_sub(1),
                _ => {}
            }
            end = token.end;
            if depth == 0 {
                break;
            }
        }
        spans.push(Entry { key, end });
    }
    Entries { start, spans }
}

/// The words of a text: brackets, commas and colons; strings with their quotes; numbers and names.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl Tokens<'_> {
    /// Moves to where `found` is true, or to the end.
    fn skip_to(&mut self, found: impl Fn(&str) -> bool) {
        let rest = &self.text[self.at..];
        let at = rest
            .char_indices()
            .map(|(at, _)| at)
            .find(|&at| found(&rest[at..]));
        self.at += at.unwrap_or(rest.len());
    }

    fn skip_space_and_comments(&mut self) {
        loop {
            // As JSON5 has it: any space, and the mark of byte order.
            self.skip_to(|rest| !rest.starts_with(|c: char| c.is_whitespace() || c == '\u{feff}'));
            let rest = &self.text[self.at..];
            if rest.starts_with("//") {
                self.skip_to(|rest| rest.starts_with(['\n', '\r', '\u{2028}', '\u{2029}']));
            } else if let Some(comment) = rest.strip_prefix("/*") {
                self.at += comment.find("*/").map_or(rest.len(), |at| at + 4);
            } else {
                return;
            }
        }
    }

    /// The length of the string at the start of `text`.
    fn string(text: &str, quote: char) -> usize {
        let mut is_escaped = false;
        let end = text.char_indices().skip(1).find(|&(_, c)| {
            let is_end = c == quote && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        });
        end.map_or(text.len(), |(at, quote)| at + quote.len_utf8())
    }
}

impl Iterator for Tokens<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        const MARKS: [char; 6] = ['{', '}', '[', ']', ',', ':'];
        self.skip_space_and_comments();
        let (start, rest) = (self.at, &self.text[self.at..]);
        let first = rest.chars().next()?;
        if MARKS.contains(&first) {
            self.at += 1;
        } else if first == '"' || first == '\'' {
            self.at += Self::string(rest, first);
        } else {
            self.skip_to(|rest| {
                rest.starts_with(|c: char| c.is_whitespace() || MARKS.contains(&c) || c == '/')
            });
            // A lone slash is in no text that parses; it may not be read for ever.
            self.at = self.at.max(start + first.len_utf8());
        }
        Some(start..self.at)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_entry_is_cut_out_and_nothing_else_is_touched() {
        for (text, expected) in [
            (
                "{\n  \"q\": {\"a\": \"}\", \"b\": [1]},\n  \"limit\": [0.0, Infinity]\n}\n",
                "{\n  \"limit\": [0.0, Infinity]\n}\n",
            ),
            (
                "{\"x\": {\"q\": 1}, \"q\": {\"a\": {}}}",
                "{\"x\": {\"q\": 1}}",
            ),
            ("{\"q\": {}}", "{}\n"),
            ("{\"x\": \"q\"}", "{\"x\": \"q\"}"),
            ("{}", "{}"),
            // Twice, and not an object.
            ("{\"q\": 1, \"x\": 2, \"q\": null}", "{\"x\": 2}"),
            (
                "{\"q\": 1, \"q\": 2, \"x\": 3, \"y\": 4}",
                "{\"x\": 3, \"y\": 4}",
            ),
            // JSON5: brackets in comments and in other quotes, keys without quotes or with escapes.
            ("/* { */ {q: '}', // }\n x: 2}", "/* { */ {x: 2}"),
            ("{x: 'it\\'s }', '\\u0071': [',']}", "{x: 'it\\'s }'}"),
        ] {
            let cut = without_entry(text, "q");
            assert_eq!(cut, expected, "{text}");
            assert_eq!(Lenient::parse(&cut).unwrap().get("q"), None, "{text}");
        }
    }

    /// `"quantization_config": null` stood behind the entry that was put in front, and the last of
    /// equal keys counts: the directory was written in 4 bits and announced as if it was not. And
    /// the entry went behind the first bracket of the text, in a comment or not.
    #[test]
    fn an_entry_replaces_others_of_its_key_and_goes_into_the_object() {
        let value = json!({"method": "m"});
        for text in [
            "{\n  \"limit\": [0.0, Infinity]\n}\n",
            "{ }",
            "{\"q\": null}",
            "{\"limit\": [0.0, Infinity], \"q\": null}",
            "/* {} */ {q: 1, limit: [0, Infinity]}",
        ] {
            let with = with_entry(text, "q", &value);
            let parsed = Lenient::parse(&with).unwrap();
            let method = parsed.get("q").and_then(|q| q.get("method"));
            assert_eq!(method.and_then(Lenient::text), Some("m"), "{with}");
            assert_eq!(
                parsed.get("limit").is_some(),
                text.contains("limit"),
                "{with}"
            );
            if text.contains("0.0, Infinity") {
                assert!(with.contains("\"limit\": [0.0, Infinity]"), "{with}");
            }
        }
    }
}
