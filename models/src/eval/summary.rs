//! The figures of a task from the outcomes of its items.

use std::collections::BTreeMap;
use std::f64::consts::LN_2;

use serde::{Deserialize, Serialize};

use super::outcome::{Measure, Outcome, Response};
use super::stats::{Figure, Part, mean, mean_by_size, mean_of_parts};
use super::tasks::Group;

/// The figures of some items, by what is measured.
pub type Figures = BTreeMap<Measure, Figure>;

/// The figures of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The task.
    pub task: String,
    /// Its items.
    pub items: usize,
    /// Of the whole task.
    pub figures: Figures,
    /// Of each subject, by name; empty where there is only one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<Subject>,
}

/// The figures of a subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// Its name.
    pub subject: String,
    /// Its items.
    pub items: usize,
    /// Its figures.
    pub figures: Figures,
}

impl Summary {
    /// The figures of outcomes with their subjects.
    pub fn new<'a>(
        task: &str,
        group: Group,
        measures: &[Measure],
        outcomes: impl IntoIterator<Item = (&'a str, &'a Outcome)>,
    ) -> Self {
        let mut by_subject: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
        let mut all = Vec::new();
        for (subject, outcome) in outcomes {
            by_subject.entry(subject).or_default().push(outcome);
            all.push(outcome);
        }
        let subjects: Vec<Subject> = by_subject
            .into_iter()
            .map(|(subject, outcomes)| Subject {
                subject: subject.to_owned(),
                items: outcomes.len(),
                figures: figures(measures, &outcomes),
            })
            .collect();
        let figures = match group {
            Group::Single => figures(measures, &all),
            Group::BySize => grouped(measures, &subjects, mean_by_size),
            Group::OfParts => grouped(measures, &subjects, mean_of_parts),
        };
        Self {
            task: task.to_owned(),
            items: all.len(),
            figures,
            subjects: match group {
                Group::Single => Vec::new(),
                Group::BySize | Group::OfParts => subjects,
            },
        }
    }
}

fn grouped(measures: &[Measure], subjects: &[Subject], add_up: fn(&[Part]) -> Figure) -> Figures {
    let parts = |measure: &Measure| -> Vec<Part> {
        let parts = subjects.iter().filter_map(|subject| {
            Some(Part {
                figure: *subject.figures.get(measure)?,
                items: subject.items,
            })
        });
        parts.collect()
    };
    let measures = measures.iter();
    measures
        .map(|measure| (*measure, add_up(&parts(measure))))
        .collect()
}

fn figures(measures: &[Measure], outcomes: &[&Outcome]) -> Figures {
    let measures = measures.iter();
    measures
        .filter_map(|&measure| Some((measure, figure(measure, outcomes)?)))
        .collect()
}

/// One figure of some items; `None` if it is not one of such items.
pub(super) fn figure(measure: Measure, outcomes: &[&Outcome]) -> Option<Figure> {
    match measure {
        Measure::Acc
        | Measure::AccNorm
        | Measure::AccBytes
        | Measure::ExactMatch
        | Measure::FlexibleExtract
        | Measure::BoxedMatch => {
            let right = outcomes.iter().map(|outcome| outcome.correct.get(&measure));
            let right: Option<Vec<f64>> = right
                .map(|right| right.map(|&right| f64::from(u8::from(right))))
                .collect();
            Some(mean(&right?))
        }
        Measure::Perplexity => {
            let likelihoods: Option<Vec<f64>> =
                outcomes.iter().map(|outcome| completion(outcome)).collect();
            let mean = mean(&likelihoods?);
            let value = (-mean.value).exp();
            Some(Figure {
                value,
                // The slope of exp(-x) is minus its value.
                stderr: mean.stderr.map(|stderr| stderr * value),
            })
        }
        Measure::BitsPerByte => per(outcomes, |text| text.bytes, |nats| nats / LN_2),
        Measure::BytePerplexity => per(outcomes, |text| text.bytes, f64::exp),
        Measure::WordPerplexity => per(outcomes, |text| text.words, f64::exp),
        Measure::NatsPerToken => per(outcomes, |text| text.tokens, |nats| nats),
    }
}

fn completion(outcome: &Outcome) -> Option<f64> {
    match &outcome.response {
        Response::Completion { log_likelihood, .. } => Some(*log_likelihood),
        Response::Choice { .. } | Response::Text { .. } | Response::Generation { .. } => None,
    }
}

/// What is counted in a text.
#[derive(Clone, Copy, Debug)]
struct Counts {
    nats: f64,
    tokens: usize,
    words: usize,
    bytes: usize,
}

fn counts(outcome: &Outcome) -> Option<Counts> {
    match outcome.response {
        Response::Text {
            log_likelihood,
            tokens,
            words,
            bytes,
        } => Some(Counts {
            nats: -log_likelihood,
            tokens,
            words,
            bytes,
        }),
        Response::Choice { .. } | Response::Completion { .. } | Response::Generation { .. } => None,
    }
}

/// A function of nats per something, over all texts together.
fn per(
    outcomes: &[&Outcome],
    something: fn(&Counts) -> usize,
    of_nats: fn(f64) -> f64,
) -> Option<Figure> {
    let counts: Option<Vec<Counts>> = outcomes.iter().map(|outcome| counts(outcome)).collect();
    let counts = counts?;
    let nats: f64 = counts.iter().map(|text| text.nats).sum();
    // A file of results may say anything.
    let number = counts.iter().map(something).fold(0, usize::saturating_add);
    Some(Figure {
        value: of_nats(nats / number as f64),
        stderr: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(log_likelihood: f64, right: bool) -> Outcome {
        Outcome {
            response: Response::Completion {
                log_likelihood,
                tokens: 1,
            },
            correct: [(Measure::Acc, right)].into(),
        }
    }

    fn close(figure: Figure, value: f64, stderr: f64) -> bool {
        (figure.value - value).abs() < 1e-12 && (figure.stderr.unwrap() - stderr).abs() < 1e-12
    }

    #[test]
    fn subjects_add_up_as_the_group_says() {
        let outcomes = [
            ("a", completion(-1.0, true)),
            ("b", completion(-1.0, true)),
            ("a", completion(-1.0, true)),
            ("b", completion(-1.0, false)),
            ("a", completion(-1.0, false)),
            ("a", completion(-1.0, false)),
        ];
        let summary = |group| {
            let outcomes = outcomes
                .iter()
                .map(|(subject, outcome)| (*subject, outcome));
            Summary::new("t", group, &[Measure::Acc], outcomes)
        };
        let acc = |group| summary(group).figures[&Measure::Acc];
        // Squares of the deviations: 1 of a (4 items), 1/2 of b (2 items).
        let (a, b): (f64, f64) = (1.0 / 3.0 / 4.0, 0.5 / 2.0);
        assert!(close(acc(Group::Single), 0.5, (1.5_f64 / 5.0 / 6.0).sqrt()));
        assert!(close(acc(Group::BySize), 0.5, (1.5_f64 / 4.0 / 6.0).sqrt()));
        assert!(close(acc(Group::OfParts), 0.5, (a + b).sqrt() / 2.0));
        let subjects = summary(Group::OfParts).subjects;
        let names: Vec<_> = subjects
            .iter()
            .map(|s| (s.subject.as_str(), s.items))
            .collect();
        assert_eq!(names, [("a", 4), ("b", 2)]);
        assert!(summary(Group::Single).subjects.is_empty());
    }

    #[test]
    fn perplexity_is_of_the_mean_log_likelihood() {
        let outcomes = [completion(-1.0, true), completion(-3.0, true)];
        let outcomes: Vec<&Outcome> = outcomes.iter().collect();
        let figure = figure(Measure::Perplexity, &outcomes).unwrap();
        assert!(close(figure, 2f64.exp(), 2f64.exp()));
    }

    #[test]
    fn texts_are_measured_together() {
        let text = |log_likelihood, tokens, words, bytes| Outcome {
            response: Response::Text {
                log_likelihood,
                tokens,
                words,
                bytes,
            },
            correct: BTreeMap::new(),
        };
        let outcomes = [text(-6.0 * LN_2, 2, 1, 4), text(-2.0 * LN_2, 2, 3, 12)];
        let outcomes: Vec<&Outcome> = outcomes.iter().collect();
        let value = |measure| figure(measure, &outcomes).unwrap().value;
        assert!((value(Measure::BitsPerByte) - 0.5).abs() < 1e-12);
        assert!((value(Measure::NatsPerToken) - 2.0 * LN_2).abs() < 1e-12);
        assert!((value(Measure::WordPerplexity) - 4.0).abs() < 1e-12);
        assert!((value(Measure::BytePerplexity) - 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(figure(Measure::Acc, &outcomes), None);
    }
}
