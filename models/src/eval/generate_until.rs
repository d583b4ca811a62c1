//! Texts that a model writes until it says what is wanted.
//!
//! Greedy, a batch of prompts at a time, longest first. A text ends at an end-of-text token, before
//! the first stop string, at its limit, or where the model's window is full; a batch ends with its
//! last text.

use burn_hybrid_ops::HybridEngine;

use super::EvalError;
use crate::data::{TextStream, Tokenizer};
use crate::generate::{Generation, Sampling};
use crate::hybrid::HybridLm;

/// One text to write.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// Ids of what is given; at least one.
    pub prompt: &'a [u32],
    /// The text ends before the first of these.
    pub stops: &'a [&'a str],
    /// Most tokens.
    pub max_tokens: usize,
}

/// Writes texts with a model.
#[derive(Debug)]
pub struct Writer<'a, B: HybridEngine> {
    /// The model.
    pub model: &'a HybridLm<B>,
    /// Where it is.
    pub device: B::Device,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Ids that end a text.
    pub ends: &'a [u32],
    /// Most positions that the model reads.
    pub window: usize,
    /// Most positions of a batch, what is written included; one text may have more.
    pub batch_tokens: usize,
}

impl<B: HybridEngine> Writer<'_, B> {
    /// The texts of some tasks. `done` is told how many more are finished.
    ///
    /// # Errors
    /// [`EvalError::Generate`] if a prompt cannot be read.
    pub fn write(
        &self,
        tasks: &[Task<'_>],
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<String>, EvalError> {
        let mut order: Vec<usize> = (0..tasks.len()).collect();
        order.sort_by_key(|&task| std::cmp::Reverse(tasks[task].prompt.len()));
        let mut texts = vec![String::new(); tasks.len()];
        let mut rest = &order[..];
        while let Some(&longest) = rest.first() {
            let room = tasks[longest].prompt.len() + tasks[longest].max_tokens;
            let count = (self.batch_tokens / room.max(1)).clamp(1, rest.len());
            let (batch, after) = rest.split_at(count);
            let prompts: Vec<Task<'_>> = batch.iter().map(|&task| tasks[task]).collect();
            for (&task, text) in batch.iter().zip(self.write_batch(&prompts)?) {
                texts[task] = text;
            }
            done(count);
            rest = after;
        }
        Ok(texts)
    }

    fn write_batch(&self, tasks: &[Task<'_>]) -> Result<Vec<String>, EvalError> {
        let prompts: Vec<&[u32]> = tasks.iter().map(|task| task.prompt).collect();
        let generation = Generation::start(self.model, &prompts, Sampling::GREEDY, &self.device)?;
        let mut texts: Vec<Text<'_>> = tasks.iter().map(|task| self.text(task)).collect();
        for ids in generation {
            for (text, id) in texts.iter_mut().zip(ids) {
                text.push(id, self.ends);
            }
            if texts.iter().all(|text| text.left == 0) {
                break;
            }
        }
        Ok(texts.into_iter().map(Text::finish).collect())
    }

    fn text<'a>(&'a self, task: &Task<'a>) -> Text<'a> {
        // The last token is not read again, so it needs no place in the window.
        let room = (self.window + 1).saturating_sub(task.prompt.len());
        Text {
            text: String::new(),
            stream: TextStream::after(self.tokenizer, task.prompt),
            stops: task.stops,
            left: task.max_tokens.min(room).max(1),
        }
    }
}

/// A text in the making.
struct Text<'a> {
    text: String,
    stream: TextStream<'a>,
    stops: &'a [&'a str],
    /// Tokens that may still come; 0 once it has ended.
    left: usize,
}

impl Text<'_> {
    /// Adds a token, unless the text has ended.
    fn push(&mut self, id: u32, ends: &[u32]) {
        if self.left == 0 {
            return;
        }
        if ends.contains(&id) {
            self.left = 0;
            return;
        }
        self.left -= 1;
        let new = self.stream.push(id);
        // A stop string may have begun before this token.
        let before = self.stops.iter().map(|stop| stop.len()).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(before);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text += &new;
        let tail = &self.text[from..];
        if self.stops.iter().any(|stop| tail.contains(stop)) {
            self.left = 0;
        }
    }

    /// The text up to the first stop string, each looked for in what the one before it has left.
    fn finish(self) -> String {
        let text = self.text + &self.stream.finish();
        cut(&text, self.stops).to_owned()
    }
}

/// What stands before every stop string.
fn cut<'a>(text: &'a str, stops: &[&str]) -> &'a str {
    let stops = stops.iter().filter(|stop| !stop.is_empty());
    stops.fold(text, |text, stop| text.split(stop).next().unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use burn::backend::Flex;

    use super::*;
    use crate::config::HybridConfig;

    const STOPS: &[&str] = &["Question:", "\n\n"];

    /// The text that these bytes make, and how many of them were taken.
    fn text(bytes: &[u8], left: usize) -> (String, usize) {
        let mut text = Text {
            text: String::new(),
            stream: TextStream::after(&Tokenizer::Bytes, &[]),
            stops: STOPS,
            left,
        };
        let mut taken = 0;
        for &byte in bytes {
            if text.left == 0 {
                break;
            }
            text.push(u32::from(byte), &[0]);
            taken += 1;
        }
        (text.finish(), taken)
    }

    #[test]
    fn a_text_ends_before_the_first_stop_string() {
        assert_eq!(text(b" 12\n\nQuestion: 3", 99), (" 12".to_owned(), 5));
        assert_eq!(text(b"12 Question: 3", 99), ("12 ".to_owned(), 12));
        assert_eq!(text("é\n\n".as_bytes(), 99), ("é".to_owned(), 4));
    }

    #[test]
    fn a_text_ends_at_its_limit_and_at_an_end_of_text_token() {
        assert_eq!(text(b"12 Question: 3", 5), ("12 Qu".to_owned(), 5));
        assert_eq!(text(b"12\0 34", 99), ("12".to_owned(), 3));
    }

    #[test]
    fn a_text_is_the_same_alone_and_in_a_batch() {
        let device = Default::default();
        let mut config = HybridConfig::preset("tiny-1m", 256).unwrap();
        config.pattern = "M*-".parse().unwrap();
        config.init_std = 0.2;
        let model = config.init::<Flex>(&device, 4);
        let prompts = ["one", "another prompt", "a third, longer prompt"];
        let prompts = prompts.map(|text| text.bytes().map(u32::from).collect::<Vec<_>>());
        let tasks: Vec<Task<'_>> = prompts
            .iter()
            .map(|prompt| Task {
                prompt,
                stops: &["\u{fffd}\u{fffd}\u{fffd}\u{fffd}"],
                max_tokens: 12,
            })
            .collect();
        let write = |batch_tokens, window| {
            let writer = Writer {
                model: &model,
                device,
                tokenizer: &Tokenizer::Bytes,
                ends: &[],
                window,
                batch_tokens,
            };
            let mut finished = 0;
            let texts = writer
                .write(&tasks, &mut |count| finished += count)
                .unwrap();
            assert_eq!(finished, 3);
            texts
        };
        assert_eq!(write(1, 100), write(1000, 100));
        // Three ids of the prompt, and two that fit behind: the last one is not read.
        let short = write(1000, 5);
        assert!(short[0].chars().count() <= 3, "{short:?}");
    }
}
