//! A model put to its tasks.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use burn_hybrid_ops::HybridEngine;

use super::EvalError;
use super::encode::{Encoded, Encoder, Row};
use super::generate_until::{self, Writer};
use super::outcome::{Measure, Outcome};
use super::question::Question;
use super::score::Scorer;
use super::summary::Summary;
use super::tasks::{Amount, Group, Loaded, Task, text};
use crate::data::Tokenizer;
use crate::hybrid::HybridLm;

/// A task, ready to be put to a model.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The task's name.
    pub task: &'static str,
    /// How its subjects add up.
    pub group: Group,
    /// What is reported, the usual measure first.
    pub measures: &'static [Measure],
    /// Its items.
    pub loaded: Loaded,
    encoded: Vec<Encoded>,
}

impl Assignment {
    /// Reads and encodes a task's files below `folder`.
    ///
    /// # Errors
    /// [`EvalError`] for what cannot be read, or not be asked.
    pub fn of_task(
        task: &Task,
        folder: &Path,
        amount: Amount,
        encoder: Encoder<'_>,
    ) -> Result<Self, EvalError> {
        let loaded = task.load(folder, amount)?;
        Self::encode(task.name, (task.group, task.measures), loaded, encoder)
    }

    /// Reads and encodes texts, to be scored as they are.
    ///
    /// # Errors
    /// As [`Self::of_task`].
    pub fn of_texts(files: &[PathBuf], encoder: Encoder<'_>) -> Result<Self, EvalError> {
        let loaded = text::load(files)?;
        Self::encode(text::NAME, (Group::Single, text::MEASURES), loaded, encoder)
    }

    fn encode(
        task: &'static str,
        (group, measures): (Group, &'static [Measure]),
        loaded: Loaded,
        encoder: Encoder<'_>,
    ) -> Result<Self, EvalError> {
        let encoded = loaded.items.iter().map(|item| encoder.encode(item));
        Ok(Self {
            task,
            group,
            measures,
            encoded: encoded.collect::<Result<_, _>>()?,
            loaded,
        })
    }

    /// How many answers, windows and texts the model is asked for.
    pub fn requests(&self) -> usize {
        let requests = self.encoded.iter().map(|encoded| match encoded {
            Encoded::Rows(rows) => rows.len(),
            Encoded::Prompt(_) => 1,
        });
        requests.sum()
    }

    /// How many ids they have, those of a common context counted each time.
    pub fn tokens(&self) -> usize {
        let tokens = self.encoded.iter().map(|encoded| match encoded {
            Encoded::Rows(rows) => rows.iter().map(|row| row.input().len()).sum(),
            Encoded::Prompt(ids) => ids.len(),
        });
        tokens.sum()
    }

    /// The figures of outcomes in the order of the items.
    pub fn summary(&self, outcomes: &[Outcome]) -> Summary {
        let subjects = self.loaded.items.iter().map(|item| item.subject.as_str());
        Summary::new(self.task, self.group, self.measures, subjects.zip(outcomes))
    }
}

/// A model that tasks are put to.
#[derive(Debug)]
pub struct Evaluator<'a, B: HybridEngine> {
    /// The model.
    pub model: &'a HybridLm<B>,
    /// Where it is.
    pub device: B::Device,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// Most positions that it reads.
    pub window: usize,
    /// Ids that end a text.
    pub ends: &'a [u32],
    /// Most positions of a batch.
    pub batch_tokens: usize,
    /// Batches that are scored at a time.
    pub threads: NonZeroUsize,
}

impl<B: HybridEngine> Evaluator<'_, B> {
    /// The outcome of each item. `done` is told how many more requests are finished.
    ///
    /// # Errors
    /// [`EvalError::Generate`] if a prompt cannot be continued, [`EvalError::NotFinite`] for a
    /// score that is no number.
    pub fn outcomes(
        &self,
        assignment: &Assignment,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Outcome>, EvalError> {
        let (mut rows, mut writing): (Vec<&Row>, Vec<generate_until::Task<'_>>) =
            Default::default();
        let asked = || assignment.loaded.items.iter().zip(&assignment.encoded);
        for (item, encoded) in asked() {
            match (&item.question, encoded) {
                (Question::Generation(generation), Encoded::Prompt(prompt)) => {
                    writing.push(generate_until::Task {
                        prompt,
                        stops: generation.stops,
                        max_tokens: generation.max_tokens,
                    });
                }
                (_, Encoded::Rows(item_rows)) => rows.extend(item_rows),
                (_, Encoded::Prompt(_)) => unreachable!("only generations are prompts"),
            }
        }
        let scorer = Scorer {
            model: self.model,
            device: self.device.clone(),
            batch_tokens: self.batch_tokens,
            threads: self.threads,
        };
        let writer = Writer {
            model: self.model,
            device: self.device.clone(),
            tokenizer: self.tokenizer,
            ends: self.ends,
            window: self.window,
            batch_tokens: self.batch_tokens,
        };
        let scores = scorer.score(&rows, done);
        let mut texts = writer.write(&writing, done)?.into_iter();
        let mut scores = &scores[..];
        let outcomes = asked().map(|(item, encoded)| match (&item.question, encoded) {
            (Question::Generation(generation), _) => {
                let text = texts.next().unwrap_or_default();
                Ok(Outcome::of_text(generation, text))
            }
            (question, Encoded::Rows(rows)) => {
                let (own, rest) = scores.split_at(rows.len());
                scores = rest;
                let mut likelihoods = own.iter().map(|score| score.log_likelihood);
                match likelihoods.find(|value| !value.is_finite()) {
                    Some(value) => Err(EvalError::NotFinite {
                        item: item.id.clone(),
                        value,
                    }),
                    None => Ok(Outcome::of_scores(question, own)),
                }
            }
            (_, Encoded::Prompt(_)) => unreachable!("only generations are prompts"),
        });
        outcomes.collect()
    }
}
