//! Text from ids that come one at a time.
//!
//! A character may lie across several ids, and some decoders look at the neighbours of an id (a
//! space at the start of a text is dropped). So ids are decoded behind a few earlier ones, whose
//! own text is then cut off, and are held back while the text ends inside a character.

use super::Tokenizer;

/// How many earlier ids are decoded with the new ones.
const CONTEXT: usize = 8;

/// How many ids are held back at most: a character has at most four bytes, and an id stands for at
/// least one. What is no character by then is none.
const HELD_BACK: usize = 3;

/// Turns ids into text as they come.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    /// Number of leading ids whose text was handed out.
    done: usize,
}

impl<'a> TextStream<'a> {
    /// A stream of the text that follows `ids`.
    pub fn after(tokenizer: &'a Tokenizer, ids: &[u32]) -> Self {
        let ids = ids[ids.len().saturating_sub(CONTEXT)..].to_vec();
        let done = ids.len();
        Self {
            tokenizer,
            ids,
            done,
        }
    }

    /// The text that is certain once `id` is known: whole characters, or nothing yet.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let unfinished = self.text(&self.ids).ends_with(char::REPLACEMENT_CHARACTER);
        if unfinished && self.ids.len() - self.done <= HELD_BACK {
            return String::new();
        }
        self.take()
    }

    /// The text of ids that were held back; what is no character is marked as such.
    pub fn finish(mut self) -> String {
        self.take()
    }

    /// The text of what is not handed out.
    fn take(&mut self) -> String {
        let (before, all) = (self.text(&self.ids[..self.done]), self.text(&self.ids));
        let new = match all.strip_prefix(&before) {
            Some(new) => new.to_owned(),
            // Ids that were given up completed a character after all, or the decoder rewrites what
            // it has given.
            None => self.text(&self.ids[self.done..]),
        };
        self.ids.drain(..self.ids.len().saturating_sub(CONTEXT));
        self.done = self.ids.len();
        new
    }

    fn text(&self, ids: &[u32]) -> String {
        String::from_utf8_lossy(&self.tokenizer.decode(ids)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::tests::{byte_level_bpe, from_json};
    use super::*;

    /// Streams the ids; returns what came at each id and at the end.
    fn stream(tokenizer: &Tokenizer, prompt: &str, ids: &[u32]) -> (Vec<String>, String) {
        let prompt = tokenizer.encode_prompt(prompt).unwrap();
        let mut stream = TextStream::after(tokenizer, &prompt);
        let pieces = ids.iter().map(|&id| stream.push(id)).collect();
        (pieces, stream.finish())
    }

    fn bytes(text: &[u8]) -> Vec<u32> {
        text.iter().map(|&byte| u32::from(byte)).collect()
    }

    #[test]
    fn a_character_comes_when_its_last_byte_does() {
        let ids = bytes("aé€😀b".as_bytes());
        let (pieces, rest) = stream(&Tokenizer::Bytes, "x", &ids);
        let expected = ["a", "", "é", "", "", "€", "", "", "", "😀", "b"];
        assert_eq!(pieces, expected);
        assert_eq!(rest, "");
    }

    #[test]
    fn bytes_of_no_character_become_marks_and_hold_nothing_up() {
        let (pieces, rest) = stream(&Tokenizer::Bytes, "x", &bytes(b"\xffa\x80\x80\x80\x80b"));
        assert_eq!(
            pieces.concat(),
            "\u{fffd}a\u{fffd}\u{fffd}\u{fffd}\u{fffd}b"
        );
        assert_eq!(pieces[5], "\u{fffd}\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(rest, "");
        let (pieces, rest) = stream(&Tokenizer::Bytes, "x", &bytes("a😀".as_bytes())[..4]);
        assert_eq!((pieces.concat(), rest.as_str()), ("a".into(), "\u{fffd}"));
    }

    #[test]
    fn a_prompt_that_ends_inside_a_character_does_not_leak_into_the_text() {
        let mut stream = TextStream::after(&Tokenizer::Bytes, &bytes(b"caf\xc3"));
        assert_eq!(stream.push(0x41), "A");
    }

    #[test]
    fn pieces_add_up_to_the_text_for_a_tokenizer_file() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer = from_json(folder.path(), &byte_level_bpe());
        let text = " the thé 😀\n  other\tthem\u{2028}";
        let mut ids = tokenizer.encode_prompt("in").unwrap();
        let prompt = ids.len();
        ids.extend(tokenizer.encode_prompt(text).unwrap());
        let (pieces, rest) = stream(&tokenizer, "in", &ids[prompt..]);
        assert!(
            pieces.iter().any(String::is_empty),
            "some characters are split"
        );
        assert!(!pieces.concat().contains(char::REPLACEMENT_CHARACTER));
        assert_eq!(pieces.concat() + &rest, text);
    }
}
