//! Text to ids and back: bytes by default, or a Hugging Face `tokenizer.json`.
//!
//! Documents are separated by one id. For bytes it is 0: text never holds a NUL ([`super::source`]
//! passes such files over), so the vocabulary stays at 256, a multiple of 16. For a tokenizer file
//! it is the first of `SEPARATORS` that it knows; without one, documents follow each other
//! directly. What begins a text is in the `tokenizer_config.json` beside that file, if it is said
//! anywhere.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::guard::guarded;
use super::{DataError, fingerprint::Fingerprint};

mod limits;

/// Names of an end-of-document token, the most specific first.
const SEPARATORS: [&str; 6] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot|>",
    "</s>",
    "<eos>",
    "[SEP]",
];

/// The file beside a tokenizer that says which tokens have which meaning.
const CONFIG_FILE: &str = "tokenizer_config.json";

/// A long text is encoded in pieces that end at a line end after at least this many bytes: merges
/// never cross such a line end in practice, and memory stays bounded.
const PIECE: usize = 1 << 20;

/// How text becomes ids.
#[derive(Debug)]
pub enum Tokenizer {
    /// Every byte is its own id.
    Bytes,
    /// A Hugging Face tokenizer.
    File(Box<HuggingFace>),
}

/// A tokenizer that was read from a `tokenizer.json`.
#[derive(Debug)]
pub struct HuggingFace {
    inner: tokenizers::Tokenizer,
    /// One more than the largest id.
    ids: usize,
    fingerprint: u64,
    separator: Option<u32>,
    begin: Option<u32>,
    path: PathBuf,
}

impl HuggingFace {
    /// The tokenizer of the `tokenizers` crate.
    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`DataError::Missing`] or [`DataError::Io`] if it cannot be read, [`DataError::Tokenizer`]
    /// if it is none.
    pub fn from_file(path: &Path) -> Result<Self, DataError> {
        let bytes = std::fs::read(path).map_err(DataError::io(path, "read"))?;
        let unusable = |reason: String| DataError::Tokenizer {
            path: path.to_owned(),
            reason: one_line(&reason),
        };
        limits::check(&bytes).map_err(unusable)?;
        let (inner, largest) = guarded(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)?;
            // A file may ask for texts that are cut, or filled up to any length.
            inner.with_truncation(None)?.with_padding(None);
            let largest = inner.get_vocab(true).into_values().max();
            Ok::<_, tokenizers::Error>((inner, largest))
        })
        .map_err(unusable)?
        .map_err(|error| unusable(error.to_string()))?;
        let Some(largest) = largest else {
            return Err(unusable("its vocabulary is empty".to_owned()));
        };
        let separator = SEPARATORS.iter().find_map(|name| inner.token_to_id(name));
        let named = named_tokens(&path.with_file_name(CONFIG_FILE))?;
        let begin = named.into_iter().find_map(|name| inner.token_to_id(&name));
        let fingerprint = Fingerprint::of(&bytes);
        Ok(Self::File(Box::new(HuggingFace {
            inner,
            ids: largest as usize + 1,
            fingerprint,
            separator,
            begin: begin.or(separator),
            path: path.to_owned(),
        })))
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Bytes => 256,
            Self::File(file) => file.ids,
        }
    }

    /// The id between documents, if there is one.
    pub fn separator(&self) -> Option<u32> {
        match self {
            Self::Bytes => Some(0),
            Self::File(file) => file.separator,
        }
    }

    /// The id before a text that nothing precedes: the begin-of-text token that the
    /// `tokenizer_config.json` beside the tokenizer names, or the end-of-text token there, or else
    /// the separator.
    pub fn begin(&self) -> Option<u32> {
        match self {
            Self::Bytes => self.separator(),
            Self::File(file) => file.begin,
        }
    }

    /// Tells tokenizers apart: equal values encode alike.
    pub fn fingerprint(&self) -> u64 {
        match self {
            Self::Bytes => Fingerprint::of(b"bytes, separator 0"),
            Self::File(file) => file.fingerprint,
        }
    }

    /// A short name for logs.
    pub fn name(&self) -> String {
        match self {
            Self::Bytes => "bytes".to_owned(),
            Self::File(file) => file.path.display().to_string(),
        }
    }

    /// Checks that a model's embedding has a row for every id.
    ///
    /// # Errors
    /// [`DataError::Vocabulary`] if it has not.
    pub fn check_vocabulary(&self, model: usize) -> Result<(), DataError> {
        let tokenizer = self.vocab_size();
        if tokenizer <= model {
            Ok(())
        } else {
            Err(DataError::Vocabulary { tokenizer, model })
        }
    }

    /// Appends the ids of `text`, without a separator. `path` is for the message.
    ///
    /// # Errors
    /// [`DataError::Encode`] if the tokenizer refuses the text.
    pub fn encode_into(
        &self,
        text: &str,
        path: &Path,
        ids: &mut Vec<u32>,
    ) -> Result<(), DataError> {
        match self {
            Self::Bytes => ids.extend(text.bytes().map(u32::from)),
            Self::File(file) => {
                for piece in pieces(text) {
                    ids.append(&mut file.encode(piece, Template::Without, path)?);
                }
            }
        }
        Ok(())
    }

    /// The ids of a text that a model is to continue, with the special tokens that the tokenizer's
    /// template puts around a text (a begin-of-text token, for many).
    ///
    /// # Errors
    /// [`DataError::Encode`] if the tokenizer refuses the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, DataError> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::File(file) => file.encode(text, Template::Around, Path::new("the prompt")),
        }
    }

    /// The bytes that the ids stand for; ids that stand for none are left out.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        match self {
            Self::Bytes => ids.iter().filter_map(|&id| u8::try_from(id).ok()).collect(),
            Self::File(file) => {
                let text = guarded(|| file.inner.decode(ids, true).unwrap_or_default());
                text.unwrap_or_default().into_bytes()
            }
        }
    }
}

/// Whether the special tokens of the tokenizer's template are put around a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Template {
    Around,
    Without,
}

impl HuggingFace {
    /// The ids of a text, all of them below [`Self::ids`]; `path` is for the message.
    fn encode(&self, text: &str, template: Template, path: &Path) -> Result<Vec<u32>, DataError> {
        let refused = |reason: String| DataError::Encode {
            path: path.to_owned(),
            reason: one_line(&reason),
        };
        let encoding = guarded(|| self.inner.encode_fast(text, template == Template::Around))
            .map_err(refused)?
            .map_err(|error| refused(error.to_string()))?;
        let ids = encoding.get_ids();
        // A template may hold ids that are in no vocabulary.
        match ids.iter().find(|&&id| id as usize >= self.ids) {
            Some(id) => Err(refused(format!(
                "it gives the id {id}, its vocabulary ends at {}",
                self.ids - 1
            ))),
            None => Ok(ids.to_vec()),
        }
    }
}

/// The begin-of-text and the end-of-text token that a `tokenizer_config.json` names; none if there
/// is no such file.
fn named_tokens(path: &Path) -> Result<Vec<String>, DataError> {
    /// A token is a string, or an object around one.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Token {
        Plain(String),
        Full { content: String },
    }
    #[derive(Deserialize)]
    struct Config {
        bos_token: Option<Token>,
        eos_token: Option<Token>,
    }
    if !path.exists() {
        return Ok(Vec::new());
    }
    let bytes = std::fs::read(path).map_err(DataError::io(path, "read"))?;
    let config: Config = serde_json::from_slice(&bytes).map_err(|error| DataError::Tokenizer {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    let tokens = [config.bos_token, config.eos_token].into_iter().flatten();
    let name = |token| match token {
        Token::Plain(name) | Token::Full { content: name } => name,
    };
    Ok(tokens.map(name).collect())
}

/// Cuts `text` after line ends into pieces of about [`PIECE`] bytes.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, tail) = rest.split_at(piece_end(rest.as_bytes()));
        rest = tail;
        Some(piece)
    })
}

/// Where the first piece of a text ends.
pub(super) fn piece_end(text: &[u8]) -> usize {
    let behind = text.get(PIECE..).unwrap_or_default();
    let newline = behind.iter().position(|&byte| byte == b'\n');
    newline.map_or(text.len(), |at| PIECE + at + 1)
}

/// Other people's messages may span lines; ours do not.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// The tokenizer of this JSON.
    pub(in crate::data) fn from_json(folder: &Path, json: &str) -> Tokenizer {
        let path = folder.join("tokenizer.json");
        std::fs::write(&path, json).unwrap();
        Tokenizer::from_file(&path).unwrap()
    }

    #[test]
    fn bytes_come_back_as_they_went() {
        let text = "naïve fn main() {}\n";
        let mut ids = Vec::new();
        Tokenizer::Bytes
            .encode_into(text, Path::new("t"), &mut ids)
            .unwrap();
        assert_eq!(ids.len(), text.len());
        assert_eq!(Tokenizer::Bytes.decode(&ids), text.as_bytes());
    }

    /// A byte-level BPE of two merges, as Hugging Face writes it.
    pub(in crate::data) fn byte_level_bpe() -> String {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut symbols: Vec<String> = alphabet.into_iter().map(String::from).collect();
        symbols.sort_unstable();
        symbols.extend(["th".to_owned(), "the".to_owned()]);
        let vocab: serde_json::Map<_, _> = symbols
            .into_iter()
            .enumerate()
            .map(|(id, symbol)| (symbol, id.into()))
            .collect();
        let byte_level = serde_json::json!({
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true
        });
        serde_json::json!({
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "vocab": vocab,
                "merges": [["t", "h"], ["th", "e"]],
            },
        })
        .to_string()
    }

    #[test]
    fn a_hugging_face_tokenizer_merges_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = from_json(folder.path(), &byte_level_bpe());
        assert_eq!(tokenizer.vocab_size(), 258);
        let text = "the thé\n  other\tthem\n";
        let mut ids = Vec::new();
        tokenizer
            .encode_into(text, Path::new("t"), &mut ids)
            .unwrap();
        // Three times "the", two bytes fewer each, and once "th", one byte fewer.
        assert_eq!(ids.len(), text.len() - 3 * 2 - 1);
        assert_eq!(tokenizer.decode(&ids), text.as_bytes());
    }

    #[test]
    fn the_configuration_beside_a_tokenizer_says_what_begins_a_text() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join(CONFIG_FILE);
        let begin = || from_json(folder.path(), &byte_level_bpe()).begin();
        assert_eq!(begin(), None);
        fs::write(&config, r#"{"bos_token": null, "eos_token": "th"}"#).unwrap();
        assert_eq!(begin(), Some(256));
        fs::write(
            &config,
            r#"{"bos_token": {"content": "the"}, "eos_token": "th"}"#,
        )
        .unwrap();
        assert_eq!(begin(), Some(257));
        fs::write(&config, "{").unwrap();
        let error = Tokenizer::from_file(&folder.path().join("tokenizer.json")).unwrap_err();
        assert!(error.to_string().contains(CONFIG_FILE), "{error}");
        assert_eq!(Tokenizer::Bytes.begin(), Some(0));
    }

    /// The same tokenizer with more in its file.
    fn with(folder: &Path, key: &str, value: serde_json::Value) -> Tokenizer {
        let mut file: serde_json::Value = serde_json::from_str(&byte_level_bpe()).unwrap();
        file[key] = value;
        from_json(folder, &file.to_string())
    }

    /// A file may ask for texts that are cut to two ids, or filled up to a billion: the first lost
    /// text in silence, the second ended the process.
    #[test]
    fn texts_are_neither_cut_nor_filled_up() {
        let folder = tempfile::tempdir().unwrap();
        let cut = json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
        });
        let fill = json!({
            "strategy": {"Fixed": 1_000_000_000}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "a"
        });
        for (key, value) in [("truncation", cut), ("padding", fill)] {
            let tokenizer = with(folder.path(), key, value);
            assert_eq!(tokenizer.encode_prompt("abc").unwrap().len(), 3, "{key}");
        }
    }

    /// Ids of a template need not be in the vocabulary, and none beyond it has an embedding.
    #[test]
    fn an_id_beyond_the_vocabulary_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let template = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"x": {"id": "x", "ids": [4_000_000_000_u32], "tokens": ["x"]}},
        });
        let tokenizer = with(folder.path(), "post_processor", template);
        let error = tokenizer.encode_prompt("a").unwrap_err().to_string();
        assert_eq!(
            error,
            "the prompt: the tokenizer cannot encode it: it gives the id 4000000000, its \
             vocabulary ends at 257"
        );
    }

    #[test]
    fn pieces_end_at_line_ends_and_add_up() {
        let text = "0123456789abcde\n".repeat(PIECE / 4);
        let parts: Vec<_> = pieces(&text).collect();
        assert!(parts.len() > 1);
        assert!(parts.iter().all(|part| part.ends_with('\n')));
        assert_eq!(parts.concat(), text);
    }

    #[test]
    fn a_vocabulary_larger_than_the_model_is_an_error() {
        assert!(Tokenizer::Bytes.check_vocabulary(256).is_ok());
        let error = Tokenizer::Bytes.check_vocabulary(255).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the tokenizer has 256 ids and the model a vocabulary of 255; \
             the model needs at least 256"
        );
    }
}
