//! What a model is asked: text, before any tokenizer.

use super::answers::AnswerRule;

/// One item of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The part of the task that it belongs to; the task's name where there are no parts.
    pub subject: String,
    /// Names the item within its task, the same in every run.
    pub id: String,
    /// What is asked.
    pub question: Question,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Question {
    /// Which of these continuations is the likeliest?
    Choice(Choice),
    /// Is this continuation what the model would have written, and how likely is it?
    Completion(Pair),
    /// How likely is this text?
    Text(String),
    /// How does the model go on?
    Generation(Generation),
}

/// A text and what may follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What is given; empty: nothing but the token that begins a text.
    pub context: String,
    /// What is scored.
    pub continuation: String,
}

/// A question with answers to choose from.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// One per answer.
    pub pairs: Vec<Pair>,
    /// Length of each answer, by which its log-likelihood is divided for some measures.
    pub lengths: Vec<Length>,
    /// Index of the right answer.
    pub gold: usize,
}

/// How long an answer is, without the space before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Length {
    /// In Unicode code points.
    pub chars: usize,
    /// In UTF-8.
    pub bytes: usize,
}

/// A text to continue until it says what is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// What is given.
    pub prompt: String,
    /// The text ends before the first of these.
    pub stops: &'static [&'static str],
    /// The text ends after this many tokens.
    pub max_tokens: usize,
    /// How the answer is found in the text, and what it should be; `None`: the text is only kept.
    pub reference: Option<Reference>,
}

/// The right answer to a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// How answers are found and compared.
    pub rule: AnswerRule,
    /// The right answer, as the task's file has it.
    pub gold: String,
}

impl Length {
    /// The length of a text.
    pub fn of(text: &str) -> Self {
        Self {
            chars: text.chars().count(),
            bytes: text.len(),
        }
    }
}

impl Choice {
    /// The usual form: one context, and each answer after a space.
    pub fn after<S: AsRef<str>>(context: &str, answers: &[S], gold: usize) -> Self {
        let answers = answers.iter().map(|answer| -> &str { answer.as_ref() });
        let pair = |answer: &str| Pair {
            context: context.to_owned(),
            continuation: format!(" {answer}"),
        };
        Self {
            pairs: answers.clone().map(pair).collect(),
            lengths: answers.map(Length::of).collect(),
            gold,
        }
    }
}
