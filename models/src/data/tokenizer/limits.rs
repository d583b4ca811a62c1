//! What a `tokenizer.json` may ask for, checked before the library sees it.
//!
//! Three things in such a file cost memory out of all proportion to its size: a regular expression
//! takes up to 10 MB once it is compiled; the automaton that looks for added tokens has up to a
//! kilobyte for every byte of them; and steps inside of steps are copied at every level. Published
//! files are far below the limits here.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Most patterns of all steps together.
const MAX_PATTERNS: usize = 32;
/// Most lists and objects in each other, in which steps are.
const MAX_DEPTH: usize = 16;
/// Most bytes of an added token.
const MAX_ADDED: usize = 256;

/// Checks the text of a `tokenizer.json`.
///
/// # Errors
/// Which limit it passes, or why it is not JSON.
pub(super) fn check(bytes: &[u8]) -> Result<(), String> {
    let file: File<'_> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let lengths = file.added_tokens.iter().map(|token| token.content.len());
    if let Some(length) = lengths.max().filter(|&length| length > MAX_ADDED) {
        return Err(format!(
            "an added token has {length} bytes, at most {MAX_ADDED} are read"
        ));
    }
    let steps = [
        file.normalizer,
        file.pre_tokenizer,
        file.post_processor,
        file.decoder,
    ];
    let patterns: usize = steps.iter().map(|steps| steps.patterns).sum();
    if patterns > MAX_PATTERNS {
        return Err(format!(
            "it has {patterns} patterns, at most {MAX_PATTERNS} are read"
        ));
    }
    match steps.iter().any(|steps| steps.is_too_deep) {
        true => Err(format!(
            "its steps lie in each other more than {MAX_DEPTH} deep"
        )),
        false => Ok(()),
    }
}

/// The parts that are looked at.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(default, borrow)]
    added_tokens: Vec<Added<'a>>,
    #[serde(default)]
    normalizer: Steps,
    #[serde(default)]
    pre_tokenizer: Steps,
    #[serde(default)]
    post_processor: Steps,
    #[serde(default)]
    decoder: Steps,
}

#[derive(Deserialize)]
struct Added<'a> {
    #[serde(borrow)]
    content: Cow<'a, str>,
}

/// What is in a part of the file: nothing of it is kept.
#[derive(Default)]
struct Steps {
    patterns: usize,
    is_too_deep: bool,
}

impl<'de> Deserialize<'de> for Steps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut steps = Self::default();
        let level = Level {
            steps: &mut steps,
            depth: 0,
        };
        level.deserialize(deserializer)?;
        Ok(steps)
    }
}

/// A value of a part, inside of `depth` others.
struct Level<'a> {
    steps: &'a mut Steps,
    depth: usize,
}

impl Level<'_> {
    fn inside(&mut self) -> Level<'_> {
        self.steps.is_too_deep |= self.depth == MAX_DEPTH;
        Level {
            steps: self.steps,
            depth: self.depth + 1,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.depth > MAX_DEPTH {
            deserializer.deserialize_ignored_any(IgnoredAny)?;
            return Ok(());
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a step")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut object: A) -> Result<(), A::Error> {
        while let Some(key) = object.next_key::<Cow<'de, str>>()? {
            // What a `Split` or a `Replace` looks for.
            self.steps.patterns += usize::from(matches!(&*key, "String" | "Regex"));
            object.next_value_seed(self.inside())?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(self.inside())?.is_some() {}
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(file: &serde_json::Value) -> String {
        check(file.to_string().as_bytes()).unwrap_err()
    }

    #[test]
    fn what_costs_memory_out_of_proportion_is_refused() {
        let split = json!({"type": "Split", "pattern": {"Regex": "\\w{250}"}});
        let sequence =
            |count: usize| json!({"type": "Sequence", "pretokenizers": vec![&split; count]});
        let file = json!({"pre_tokenizer": sequence(20), "normalizer": sequence(20)});
        assert_eq!(refused(&file), "it has 40 patterns, at most 32 are read");
        // A key may be spelled with escapes.
        let escaped = file.to_string().replace("Regex", "R\\u0065gex");
        assert!(check(escaped.as_bytes()).is_err());
        let added = json!({"added_tokens": [{"id": 0, "content": "x".repeat(257)}]});
        assert_eq!(
            refused(&added),
            "an added token has 257 bytes, at most 256 are read"
        );
        let mut deep = json!({"type": "Whitespace"});
        for _ in 0..9 {
            deep = json!({"type": "Sequence", "pretokenizers": [deep]});
        }
        assert_eq!(
            refused(&json!({"pre_tokenizer": deep})),
            "its steps lie in each other more than 16 deep"
        );
    }

    #[test]
    fn an_ordinary_file_passes() {
        let file = json!({
            "version": "1.0",
            "added_tokens": [{"id": 0, "content": "<s>", "special": true}],
            "normalizer": null,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
            ]},
            "post_processor": {"type": "TemplateProcessing", "single": [], "special_tokens": {
                "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}
            }},
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
        });
        assert_eq!(check(file.to_string().as_bytes()), Ok(()));
    }
}
