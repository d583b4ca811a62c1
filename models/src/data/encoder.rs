//! Ids of text in quantity: the ids of [`Tokenizer`], in parallel and many times as fast.
//!
//! Text is cut into pieces ([`Encoder::cut`]), threads encode them ([`Worker::encode`]), and the
//! ids are put in order again. There are three ways, and [`Encoder::way`] names the one taken:
//!
//! * bytes are ids;
//! * by words: a byte-level tokenizer without a normalizer splits text at the words that one
//!   regular expression finds, and encodes each word on its own. So the words are found by an
//!   automaton ([`splitter`]), and every word that was seen before is looked up; the `tokenizers`
//!   crate encodes the others. Added tokens are found first, and text between them is split on its
//!   own, as in that crate;
//! * whole: everything else goes through the crate, in pieces that end at line ends.
//!
//! By words, a piece begins where a word is guessed to begin, and is split with all the text behind
//! it in view, until a word reaches the piece's end. If that word ends where the next piece begins,
//! the guess was right; otherwise whoever puts the ids in order has that piece encoded again from
//! where the word ended ([`Encoded::reached`]). The ids are those of the uncut text in any case.

mod splitter;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use regex_automata::hybrid::dfa::Cache;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{
    Model, ModelWrapper, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    SplitDelimiterBehavior,
};

use super::documents::Text;
use super::tokenizer::piece_end;
use super::{DataError, Tokenizer};
use splitter::WordSplitter;

/// The pattern of [`ByteLevel`] with `use_regex`: GPT-2's.
const BYTE_LEVEL: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Size of a piece in bytes.
const PIECE: usize = 1 << 18;
/// How far behind its place a better end of a piece is looked for.
const SEARCH: usize = 1 << 12;
/// Longest word that is remembered.
const MAX_WORD: usize = 64;
/// Words that a thread remembers; then it begins anew, so that memory stays bounded.
const MAX_WORDS: usize = 1 << 20;

/// A stretch of text to encode.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Where the text lies.
    pub(super) text: Arc<Text>,
    /// What is split as one: a document, or the part of it between two added tokens.
    pub(super) whole: Range<usize>,
    /// The piece, within it.
    pub(super) range: Range<usize>,
    /// The added token behind the piece.
    pub(super) then: Option<u32>,
}

/// What became of a piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoded {
    /// Number of ids.
    pub(super) ids: usize,
    /// Where the last word ended: the piece's end, or behind it.
    pub(super) reached: usize,
}

/// Encodes pieces of text.
#[derive(Debug)]
pub(super) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    way: Way,
    /// Size of a piece in bytes.
    piece: usize,
}

#[derive(Debug)]
enum Way {
    Bytes,
    Words(Box<Words>),
    /// With the reason.
    Whole(String),
}

/// What encoding by words needs.
#[derive(Debug)]
struct Words {
    splitter: WordSplitter,
    byte_level: ByteLevel,
    /// Finds added tokens and tells their ids: those that a normalizer would not touch, then the
    /// others, as the crate does.
    added: Vec<(AhoCorasick, Vec<u32>)>,
}

impl<'a> Encoder<'a> {
    /// The encoder of a tokenizer.
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        let way = match tokenizer {
            Tokenizer::Bytes => Way::Bytes,
            Tokenizer::File(file) => match Words::new(file.inner()) {
                Ok(words) => Way::Words(Box::new(words)),
                Err(reason) => Way::Whole(reason),
            },
        };
        Self {
            tokenizer,
            way,
            piece: PIECE,
        }
    }

    /// How text is encoded, for the user.
    pub(super) fn way(&self) -> String {
        match &self.way {
            Way::Bytes => "bytes".to_owned(),
            Way::Words(_) => "word by word".to_owned(),
            Way::Whole(reason) => format!("text by text, which is slow: {reason}"),
        }
    }

    /// True for a document that cannot be encoded: bytes that hold a separator.
    pub(super) fn refuses(&self, document: &[u8]) -> bool {
        matches!(self.way, Way::Bytes) && memchr::memchr(0, document).is_some()
    }

    /// Cuts a document into pieces, at least one.
    pub(super) fn cut(&self, text: &Arc<Text>, document: Range<usize>) -> Vec<Piece> {
        let mut out = Vec::new();
        let piece = |whole: &Range<usize>, range| Piece {
            text: text.clone(),
            whole: whole.clone(),
            range,
            then: None,
        };
        match &self.way {
            Way::Bytes => {
                let mut start = document.start;
                while start < document.end {
                    let end = document.end.min(start + self.piece);
                    out.push(piece(&document, start..end));
                    start = end;
                }
            }
            Way::Words(words) => {
                for (part, then) in words.parts(text, document) {
                    let mut start = part.start;
                    while start < part.end {
                        let end = word_start(text, start.saturating_add(self.piece), part.end);
                        out.push(piece(&part, start..end));
                        start = end;
                    }
                    if part.is_empty() {
                        out.push(piece(&part, part.clone()));
                    }
                    if let Some(last) = out.last_mut() {
                        last.then = then;
                    }
                }
            }
            Way::Whole(_) => {
                let mut start = document.start;
                while start < document.end {
                    let range = start..start + piece_end(text.bytes(start..document.end));
                    start = range.end;
                    out.push(piece(&range, range.clone()));
                }
            }
        }
        out
    }

    /// What one thread encodes with.
    pub(super) fn worker(&self) -> Worker<'_> {
        let cache = match &self.way {
            Way::Words(words) => Some(words.splitter.cache()),
            Way::Bytes | Way::Whole(_) => None,
        };
        Worker {
            encoder: self,
            cache,
            known: HashMap::new(),
            ids: Vec::new(),
        }
    }
}

/// One thread's encoder, with the words that it has seen.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    encoder: &'a Encoder<'a>,
    cache: Option<Cache>,
    /// Where the ids of a word lie in `ids`.
    known: HashMap<Box<[u8]>, Range<u32>>,
    ids: Vec<u32>,
}

impl Worker<'_> {
    /// Appends the ids of a piece from `start` on, which lies in its range or at its end.
    ///
    /// # Errors
    /// [`DataError::Encode`] if the tokenizer refuses the text.
    pub(super) fn encode(
        &mut self,
        piece: &Piece,
        start: usize,
        ids: &mut Vec<u32>,
    ) -> Result<Encoded, DataError> {
        let before = ids.len();
        let end = piece.range.end;
        let reached = match &self.encoder.way {
            Way::Bytes => {
                ids.extend(
                    piece
                        .text
                        .bytes(start..end)
                        .iter()
                        .map(|&byte| u32::from(byte)),
                );
                end
            }
            Way::Words(words) => {
                let reached = self.words(words, piece, start, ids);
                reached.map_err(|reason| DataError::Encode {
                    path: piece.text.path().to_owned(),
                    reason,
                })?
            }
            Way::Whole(_) => {
                let text = piece.text.str(start..end)?;
                let tokenizer = self.encoder.tokenizer;
                tokenizer.encode_into(text, piece.text.path(), ids)?;
                end
            }
        };
        ids.extend(piece.then);
        let ids = ids.len() - before;
        Ok(Encoded { ids, reached })
    }

    fn words(
        &mut self,
        words: &Words,
        piece: &Piece,
        start: usize,
        ids: &mut Vec<u32>,
    ) -> Result<usize, String> {
        let Some(mut cache) = self.cache.take() else {
            return Err("it has no automaton".to_owned());
        };
        let text = piece.text.bytes(piece.whole.clone());
        let mut at = start - piece.whole.start;
        let end = piece.range.end - piece.whole.start;
        let mut result = Ok(());
        while at < end && result.is_ok() {
            result = words.splitter.end(&mut cache, text, at).and_then(|stop| {
                let word = &text[at..stop];
                at = stop;
                self.word(words, word, ids)
            });
        }
        self.cache = Some(cache);
        result.map(|()| at + piece.whole.start)
    }

    /// Appends the ids of one word.
    fn word(&mut self, words: &Words, word: &[u8], ids: &mut Vec<u32>) -> Result<(), String> {
        if let Some(known) = self.known.get(word) {
            ids.extend_from_slice(&self.ids[known.start as usize..known.end as usize]);
            return Ok(());
        }
        let Tokenizer::File(file) = self.encoder.tokenizer else {
            return Err("it has no words".to_owned());
        };
        let first = ids.len();
        words.encode(file.inner().get_model(), word, ids)?;
        if word.len() > MAX_WORD {
            return Ok(());
        }
        if self.known.len() >= MAX_WORDS {
            self.known.clear();
            self.ids.clear();
        }
        // A word of at most 64 bytes has at most as many ids, so all of them have a place.
        let start = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
        self.ids.extend_from_slice(&ids[first..]);
        let end = u32::try_from(self.ids.len()).unwrap_or(u32::MAX);
        self.known.insert(word.into(), start..end);
        Ok(())
    }
}

impl Words {
    /// What encoding by words needs; the reason if a tokenizer does not work by words.
    fn new(tokenizer: &tokenizers::Tokenizer) -> Result<Self, String> {
        if tokenizer.get_normalizer().is_some() {
            return Err("it has a normalizer".to_owned());
        }
        if let ModelWrapper::BPE(model) = tokenizer.get_model()
            && model.dropout.is_some_and(|dropout| dropout > 0.0)
        {
            return Err("its merges drop out at random".to_owned());
        }
        let splitter = match tokenizer.get_pre_tokenizer() {
            Some(pre_tokenizer) => WordSplitter::new(&pattern(pre_tokenizer)?)?,
            None => return Err("it has no pre-tokenizer".to_owned()),
        };
        Ok(Self {
            splitter,
            byte_level: ByteLevel::new(false, false, false),
            added: added_tokens(tokenizer)?,
        })
    }

    /// Cuts a document at added tokens: the parts between them, and the token behind each.
    fn parts(&self, text: &Text, document: Range<usize>) -> Vec<(Range<usize>, Option<u32>)> {
        let mut parts = vec![(document, None)];
        for (finder, ids) in &self.added {
            let mut finer = Vec::with_capacity(parts.len());
            for (part, then) in parts {
                let mut start = part.start;
                for found in finder.find_iter(text.bytes(part.clone())) {
                    let token = ids[found.pattern().as_usize()];
                    finer.push((start..part.start + found.start(), Some(token)));
                    start = part.start + found.end();
                }
                finer.push((start..part.end, then));
            }
            parts = finer;
        }
        parts
    }

    /// Appends the ids of a word, from the crate.
    fn encode(&self, model: &ModelWrapper, word: &[u8], ids: &mut Vec<u32>) -> Result<(), String> {
        let text = str::from_utf8(word).map_err(|error| error.to_string())?;
        let mut mapped = PreTokenizedString::from(text);
        let reason = |error: tokenizers::Error| error.to_string();
        self.byte_level.pre_tokenize(&mut mapped).map_err(reason)?;
        let splits = mapped.get_splits(OffsetReferential::Normalized, OffsetType::None);
        for (symbols, _, _) in splits {
            let tokens = model.tokenize(symbols).map_err(reason)?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
        Ok(())
    }
}

/// The pattern whose matches are the words of a byte-level pre-tokenizer.
fn pattern(pre_tokenizer: &PreTokenizerWrapper) -> Result<String, String> {
    let other = || "its pre-tokenizer is not one pattern and byte-level".to_owned();
    let plain = |byte_level: &ByteLevel, use_regex| {
        !byte_level.add_prefix_space && byte_level.use_regex == use_regex
    };
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "another crate's kinds of pre-tokenizers; any but two take the other way"
    )]
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(bytes) if plain(bytes, true) => Ok(BYTE_LEVEL.to_owned()),
        PreTokenizerWrapper::Sequence(sequence) => match sequence.as_ref() {
            [
                PreTokenizerWrapper::Split(split),
                PreTokenizerWrapper::ByteLevel(bytes),
            ] if plain(bytes, false)
                && !split.invert
                && split.behavior == SplitDelimiterBehavior::Isolated =>
            {
                match &split.pattern {
                    SplitPattern::Regex(pattern) => Ok(pattern.clone()),
                    SplitPattern::String(_) => Err(other()),
                }
            }
            _ => Err(other()),
        },
        _ => Err(other()),
    }
}

/// Finders of added tokens with their ids.
fn added_tokens(tokenizer: &tokenizers::Tokenizer) -> Result<Vec<(AhoCorasick, Vec<u32>)>, String> {
    let (mut untouched, mut normalized) = (Vec::new(), Vec::new());
    for (id, token) in tokenizer.get_added_tokens_decoder() {
        if token.lstrip || token.rstrip || token.single_word {
            return Err(format!("its added token {} takes spaces", token.content));
        }
        if token.content.is_empty() {
            continue;
        }
        let id = tokenizer.token_to_id(&token.content).unwrap_or(id);
        let list = if token.normalized {
            &mut normalized
        } else {
            &mut untouched
        };
        list.push((token.content, id));
    }
    let lists = [untouched, normalized];
    let finder = |mut list: Vec<(String, u32)>| {
        list.sort_unstable();
        let (contents, ids): (Vec<_>, Vec<_>) = list.into_iter().unzip();
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(contents);
        finder
            .map(|finder| (finder, ids))
            .map_err(|error| error.to_string())
    };
    lists
        .into_iter()
        .filter(|list| !list.is_empty())
        .map(finder)
        .collect()
}

/// Where a word probably begins, near `at`: at a space between two letters or digits. Any start of
/// a character would do.
fn word_start(text: &Text, at: usize, end: usize) -> usize {
    if at >= end {
        return end;
    }
    let near = text.bytes(at - 1..end.min(at + SEARCH));
    let is_space = |window: &[u8]| {
        window[0].is_ascii_alphanumeric() && window[1] == b' ' && window[2].is_ascii_alphanumeric()
    };
    match near.windows(3).position(is_space) {
        Some(found) => at + found,
        None => (at..end).find(|&at| text.is_boundary(at)).unwrap_or(end),
    }
}

#[cfg(test)]
mod tests;
