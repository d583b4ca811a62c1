//! Questions as token ids.
//!
//! 1. A pair is encoded as one text, because a tokenizer may join the end of the context with the
//!    start of the continuation. The continuation's ids are those behind as many ids as the context
//!    has alone, its trailing white space aside: that belongs to the word that follows.
//! 2. Where nothing precedes, the token that begins a text does; a continuation that starts with
//!    that token itself is not given it twice, and its first token is not scored.
//! 3. Ids that do not fit the window go from the left, except in prompts that a model continues:
//!    a text that has lost its beginning is another question.
//! 4. A text longer than the window is scored in windows, every token once: the first begins with
//!    the token of 2., a later one is full and scores what no window before it has.
//!
//! Source: lm-evaluation-harness 0.4.13, `api/model.py` (`_encode_pair`, `loglikelihood`) and
//! `utils.py` (`get_rolling_token_windows` with one token of context).

use std::path::Path;

use super::EvalError;
use super::question::{Item, Pair, Question};
use crate::data::Tokenizer;

/// Ids of which the last ones are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What precedes and what is scored.
    ids: Vec<u32>,
    /// How many are scored, fewer than there are.
    scored: usize,
}

impl Row {
    /// A row of which the last `scored` ids are scored.
    ///
    /// # Panics
    /// Unless at least one is scored, and one precedes.
    pub fn new(ids: Vec<u32>, scored: usize) -> Self {
        assert!(
            (1..ids.len()).contains(&scored),
            "{scored} of {}",
            ids.len()
        );
        Self { ids, scored }
    }

    /// The ids that the model reads: all but the last.
    pub fn input(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }

    /// The ids that are scored.
    pub fn targets(&self) -> &[u32] {
        &self.ids[self.ids.len() - self.scored..]
    }

    /// Position in the input from which the first scored id is predicted.
    pub fn first(&self) -> usize {
        self.ids.len() - 1 - self.scored
    }
}

/// A question as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// What to score: one row per answer, or per window of a text.
    Rows(Vec<Row>),
    /// What to continue.
    Prompt(Vec<u32>),
}

/// Turns questions into ids for a model with this window.
#[derive(Clone, Copy, Debug)]
pub struct Encoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Most ids that the model reads at once.
    pub window: usize,
}

impl Encoder<'_> {
    /// The ids of an item's question.
    ///
    /// # Errors
    /// [`EvalError`] with the item's name, if it cannot be asked.
    pub fn encode(&self, item: &Item) -> Result<Encoded, EvalError> {
        match &item.question {
            Question::Choice(choice) => self.pairs(item, &choice.pairs),
            Question::Completion(pair) => self.pairs(item, std::slice::from_ref(pair)),
            Question::Text(text) => self.windows(item, text),
            Question::Generation(generation) => {
                let ids = self.tokenizer.encode_prompt(&generation.prompt)?;
                if ids.len() > self.window {
                    return Err(EvalError::Prompt {
                        item: item.id.clone(),
                        tokens: ids.len(),
                        window: self.window,
                    });
                }
                Ok(Encoded::Prompt(ids))
            }
        }
    }

    /// Steps 1 to 3.
    fn pairs(&self, item: &Item, pairs: &[Pair]) -> Result<Encoded, EvalError> {
        // Most questions have one context for all answers.
        let mut known: Option<(&str, usize)> = None;
        let mut rows = Vec::new();
        for Pair {
            context,
            continuation,
        } in pairs
        {
            let (ids, before) = if context.is_empty() {
                let begin = self.begin(item)?;
                let mut ids = vec![begin];
                self.tokenizer
                    .encode_into(continuation, Path::new("a continuation"), &mut ids)?;
                if ids.get(1) == Some(&begin) {
                    ids.remove(0);
                }
                (ids, 1)
            } else {
                let alone = context.trim_end();
                let before = match known {
                    Some((known, before)) if known == alone => before,
                    _ => self.tokenizer.encode_prompt(alone)?.len(),
                };
                known = Some((alone, before));
                let ids = self
                    .tokenizer
                    .encode_prompt(&format!("{context}{continuation}"))?;
                (ids, before)
            };
            rows.push(self.row(item, ids, before)?);
        }
        Ok(Encoded::Rows(rows))
    }

    /// A row of which the first `before` ids are the context.
    fn row(&self, item: &Item, mut ids: Vec<u32>, before: usize) -> Result<Row, EvalError> {
        let scored = ids.len().saturating_sub(before);
        if before == 0 || !(1..=self.window).contains(&scored) {
            return Err(EvalError::Continuation {
                item: item.id.clone(),
                tokens: scored,
                window: self.window,
            });
        }
        ids.drain(..ids.len().saturating_sub(self.window + 1));
        Ok(Row::new(ids, scored))
    }

    /// Step 4.
    fn windows(&self, item: &Item, text: &str) -> Result<Encoded, EvalError> {
        let ids = self.tokenizer.encode_prompt(text)?;
        let first = ids.len().min(self.window);
        let mut rows = Vec::new();
        if first > 0 {
            let mut row = vec![self.begin(item)?];
            row.extend_from_slice(&ids[..first]);
            rows.push(Row::new(row, first));
        }
        let mut scored = first;
        while scored < ids.len() {
            let end = ids.len().min(scored + self.window);
            let row = ids[end - self.window - 1..end].to_vec();
            rows.push(Row::new(row, end - scored));
            scored = end;
        }
        match rows.is_empty() {
            true => Err(EvalError::Continuation {
                item: item.id.clone(),
                tokens: 0,
                window: self.window,
            }),
            false => Ok(Encoded::Rows(rows)),
        }
    }

    fn begin(&self, item: &Item) -> Result<u32, EvalError> {
        self.tokenizer.begin().ok_or_else(|| EvalError::NoBegin {
            item: item.id.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::question::{Choice, Generation};
    use super::*;

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    fn encode(window: usize, question: Question) -> Result<Encoded, String> {
        let encoder = Encoder {
            tokenizer: &Tokenizer::Bytes,
            window,
        };
        let item = Item {
            subject: "tests".to_owned(),
            id: "7".to_owned(),
            question,
        };
        encoder.encode(&item).map_err(|error| error.to_string())
    }

    fn pair(window: usize, context: &str, continuation: &str) -> Result<Row, String> {
        let question = Question::Completion(Pair {
            context: context.to_owned(),
            continuation: continuation.to_owned(),
        });
        match encode(window, question)? {
            Encoded::Rows(mut rows) => Ok(rows.remove(0)),
            Encoded::Prompt(_) => unreachable!(),
        }
    }

    #[test]
    fn trailing_space_of_the_context_belongs_to_the_continuation() {
        let row = pair(100, "ab \n", " cd").unwrap();
        assert_eq!(row.targets(), bytes(" \n cd"));
        assert_eq!(row.input(), bytes("ab \n c"));
        assert_eq!(row.first(), 1);
    }

    #[test]
    fn an_empty_context_is_the_token_that_begins_a_text() {
        let row = pair(100, "", " ab").unwrap();
        assert_eq!(row.input(), [&[0], &bytes(" a")[..]].concat());
        assert_eq!(row.targets(), bytes(" ab"));
        // That token is not put before itself.
        let row = pair(100, "", "\0ab").unwrap();
        assert_eq!(row.input(), [&[0], &bytes("a")[..]].concat());
        assert_eq!(row.targets(), bytes("ab"));
    }

    #[test]
    fn what_does_not_fit_the_window_goes_from_the_left() {
        let row = pair(5, "abcdef", "gh").unwrap();
        assert_eq!(row.input(), bytes("cdefg"));
        assert_eq!((row.targets(), row.first()), (&bytes("gh")[..], 3));
        let whole = pair(5, "abcdef", "ghijk").unwrap();
        assert_eq!((whole.first(), whole.input()), (0, &bytes("fghij")[..]));
        let error = pair(5, "abcdef", "ghijkl").unwrap_err();
        assert!(
            error.contains("item 7") && error.contains("6 tokens"),
            "{error}"
        );
        assert!(pair(5, "abc", "").unwrap_err().contains("0 tokens"));
    }

    /// The windows of the example in the harness's documentation: 0 begins, ids are 1 to 11, the
    /// window is 4.
    #[test]
    fn windows_score_every_token_once() {
        let text: String = (1..=11).map(char::from).collect();
        let Ok(Encoded::Rows(rows)) = encode(4, Question::Text(text)) else {
            unreachable!()
        };
        let rows: Vec<_> = rows
            .iter()
            .map(|row| (row.input(), row.targets()))
            .collect();
        let expected: [(&[u32], &[u32]); 3] = [
            (&[0, 1, 2, 3], &[1, 2, 3, 4]),
            (&[4, 5, 6, 7], &[5, 6, 7, 8]),
            (&[7, 8, 9, 10], &[9, 10, 11]),
        ];
        assert_eq!(rows, expected);
        assert!(encode(4, Question::Text(String::new())).is_err());
    }

    #[test]
    fn a_prompt_longer_than_the_window_is_refused() {
        let prompt = |text: &str| {
            let generation = Generation {
                prompt: text.to_owned(),
                stops: &[],
                max_tokens: 9,
                reference: None,
            };
            encode(4, Question::Generation(generation))
        };
        assert_eq!(prompt("abcd"), Ok(Encoded::Prompt(bytes("abcd"))));
        let error = prompt("abcde").unwrap_err();
        assert!(
            error.contains("5 tokens") && error.contains("window is 4"),
            "{error}"
        );
    }

    #[test]
    fn answers_to_one_context_differ_behind_it() {
        let choice = Choice::after("Q:", &["no", "yes"], 0);
        let Ok(Encoded::Rows(rows)) = encode(100, Question::Choice(choice)) else {
            unreachable!()
        };
        let targets: Vec<_> = rows.iter().map(Row::targets).collect();
        assert_eq!(targets, [bytes(" no"), bytes(" yes")]);
    }
}
