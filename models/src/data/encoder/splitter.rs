//! Where the next word of a byte-level tokenizer ends: its regular expression, run as an automaton.
//!
//! Tokenizer files split text by a pattern whose last alternatives are `\s+(?!\S)|\s+`: spaces
//! without the last one, which belongs to the word behind them. Automata know no lookahead, so the
//! two are taken as `\s+`, and one character is given back where the match has more than one and
//! text follows: greedy `\s+` stops at a character that is no space or at the end of the text, so
//! the lookahead fails exactly there, and one character less is what backtracking finds.
//!
//! Matching is leftmost-first, as in the regular expression, and reads as far ahead as it has to.
//! Which part of it a quantifier took, automata do not know: possessive ones are refused.

use regex_automata::hybrid::BuildError;
use regex_automata::hybrid::dfa::{Cache, Config, DFA};
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};

/// The alternatives that need a lookahead.
const LAST_SPACE: &str = r"|\s+(?!\S)|\s+";
const SPACES: &str = r"\s+";

/// Splits text into words.
#[derive(Debug)]
pub(super) struct WordSplitter {
    dfa: DFA,
    /// Whether the second pattern is the spaces.
    gives_back: bool,
}

impl WordSplitter {
    /// The splitter of a pattern; the reason if automata cannot match it.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        if has_possessive_quantifier(pattern) {
            return Err("its pattern has possessive quantifiers".to_owned());
        }
        let head = pattern.strip_suffix(LAST_SPACE);
        let patterns = match head {
            Some(head) => vec![head, SPACES],
            None => vec![pattern],
        };
        let parsed = syntax::parse_many(&patterns).map_err(|error| one_line(&error.to_string()))?;
        if parsed
            .iter()
            .any(|hir| hir.properties().minimum_len() == Some(0))
        {
            return Err("its pattern matches nothing at all".to_owned());
        }
        // Words of all scripts need some thousand states: a cache that holds them is not cleared.
        let config = Config::new()
            .match_kind(MatchKind::LeftmostFirst)
            .cache_capacity(16 << 20);
        let dfa = DFA::builder().configure(config).build_many(&patterns);
        let reason = |error: BuildError| one_line(&error.to_string());
        Ok(Self {
            dfa: dfa.map_err(reason)?,
            gives_back: head.is_some(),
        })
    }

    /// Memory for one thread's searches.
    pub(super) fn cache(&self) -> Cache {
        self.dfa.create_cache()
    }

    /// The end of the word that begins at `start`, which lies before the end of `text`. What no
    /// word begins in is a word up to the next one.
    pub(super) fn end(
        &self,
        cache: &mut Cache,
        text: &[u8],
        start: usize,
    ) -> Result<usize, String> {
        if let Some(end) = self.matched(cache, text, start)? {
            return Ok(end);
        }
        let mut end = start;
        loop {
            end += 1;
            while text.get(end).is_some_and(|&byte| is_continuation(byte)) {
                end += 1;
            }
            if end >= text.len() || self.matched(cache, text, end)?.is_some() {
                return Ok(end.min(text.len()));
            }
        }
    }

    fn matched(
        &self,
        cache: &mut Cache,
        text: &[u8],
        start: usize,
    ) -> Result<Option<usize>, String> {
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        let found = self.dfa.try_search_fwd(cache, &input);
        let Some(found) = found.map_err(|error| one_line(&error.to_string()))? else {
            return Ok(None);
        };
        let end = found.offset();
        if !self.gives_back || found.pattern().as_usize() == 0 || end == text.len() {
            return Ok(Some(end));
        }
        let mut last = end - 1;
        while last > start && is_continuation(text[last]) {
            last -= 1;
        }
        Ok(Some(if last > start { last } else { end }))
    }
}

/// True if a `+` stands directly behind a quantifier. The crate takes `x?+` as one that gives
/// nothing back; regex-syntax has no such thing, reads `(?:x?)+`, and finds other words.
fn has_possessive_quantifier(pattern: &str) -> bool {
    let mut rest = pattern;
    // How many classes are open, for they nest, and whether a quantifier ends where `rest` begins.
    let (mut classes, mut quantified) = (0_usize, false);
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        if character == '+' && quantified {
            return true;
        }
        quantified = false;
        match character {
            '\\' => rest = behind_escape(rest),
            '[' => {
                classes += 1;
                rest = rest.strip_prefix('^').unwrap_or(rest);
                // A bracket that comes first is one of the class.
                rest = rest.strip_prefix(']').unwrap_or(rest);
            }
            ']' => classes = classes.saturating_sub(1),
            '?' | '*' | '+' => quantified = classes == 0,
            // Outside of classes and escapes, regex-syntax takes a brace for nothing else.
            '{' if classes == 0 => {
                rest = behind_brace(rest);
                quantified = true;
            }
            _ => {}
        }
    }
    false
}

/// What follows an escape whose backslash is before `rest`: a character, or a name in braces.
fn behind_escape(rest: &str) -> &str {
    let mut characters = rest.chars();
    let named = matches!(characters.next(), Some('p' | 'P' | 'x' | 'u' | 'U' | 'b'));
    let rest = characters.as_str();
    match rest.strip_prefix('{') {
        Some(name) if named => behind_brace(name),
        Some(_) | None => rest,
    }
}

/// What follows the brace that closes.
fn behind_brace(rest: &str) -> &str {
    rest.split_once('}').map_or("", |(_, behind)| behind)
}

/// True for a byte that does not begin a character of UTF-8.
fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
