//! What came of one item.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::question::{Choice, Generation, Length, Question};
use super::score::Score;

/// What is measured, by the name that tables and files have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Share of items whose likeliest answer is right, or whose text is what the model would write.
    Acc,
    /// The same with log-likelihoods per code point of the answer.
    AccNorm,
    /// The same with log-likelihoods per byte of the answer.
    AccBytes,
    /// Share of items whose answer was found by the strict rule and is right.
    ExactMatch,
    /// Share of items whose last number is right.
    FlexibleExtract,
    /// Share of items whose last boxed formula is right.
    BoxedMatch,
    /// `exp` of minus the mean log-likelihood of the items.
    Perplexity,
    /// Bits per byte of text.
    BitsPerByte,
    /// `exp` of nats per byte.
    BytePerplexity,
    /// `exp` of nats per word, words being what white space separates.
    WordPerplexity,
    /// Nats per token of the model's own tokenizer.
    NatsPerToken,
}

impl Measure {
    /// The name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::AccBytes => "acc_bytes",
            Self::ExactMatch => "exact_match",
            Self::FlexibleExtract => "flexible_extract",
            Self::BoxedMatch => "boxed_match",
            Self::Perplexity => "perplexity",
            Self::BitsPerByte => "bits_per_byte",
            Self::BytePerplexity => "byte_perplexity",
            Self::WordPerplexity => "word_perplexity",
            Self::NatsPerToken => "nats_per_token",
        }
    }
}

/// What the model did with an item, and which measures count it as right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// What the model did.
    #[serde(flatten)]
    pub response: Response,
    /// Right or wrong; absent where there is no right answer.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub correct: BTreeMap<Measure, bool>,
}

/// What the model did with an item.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Log-likelihoods of the answers.
    Choice {
        /// Index of the right answer.
        gold: usize,
        /// In nats, one per answer.
        log_likelihoods: Vec<f64>,
        /// Tokens of each answer.
        tokens: Vec<usize>,
        /// Code points of each answer.
        chars: Vec<usize>,
        /// Bytes of each answer.
        bytes: Vec<usize>,
    },
    /// Log-likelihood of the one continuation.
    Completion {
        /// In nats.
        log_likelihood: f64,
        /// Tokens of the continuation.
        tokens: usize,
    },
    /// Log-likelihood of a text.
    Text {
        /// In nats.
        log_likelihood: f64,
        /// Its tokens.
        tokens: usize,
        /// Its words.
        words: usize,
        /// Its bytes.
        bytes: usize,
    },
    /// What the model wrote.
    Generation {
        /// Up to the first stop string.
        text: String,
        /// The right answer; empty if there is none.
        gold: String,
        /// What each rule found.
        answers: BTreeMap<Measure, String>,
    },
}

impl Outcome {
    /// The outcome of a question whose answers or windows got these scores, in their order.
    ///
    /// # Panics
    /// For a generation, which has no scores, and without any score.
    pub fn of_scores(question: &Question, scores: &[Score]) -> Self {
        let first = scores.first().expect("every question asks for a score");
        match question {
            Question::Choice(choice) => Self::of_choice(choice, scores),
            Question::Completion(_) => Self {
                response: Response::Completion {
                    log_likelihood: first.log_likelihood,
                    tokens: first.tokens,
                },
                correct: [(Measure::Acc, first.is_greedy)].into(),
            },
            Question::Text(text) => Self {
                response: Response::Text {
                    log_likelihood: scores.iter().map(|score| score.log_likelihood).sum(),
                    tokens: scores.iter().map(|score| score.tokens).sum(),
                    words: words(text),
                    bytes: text.len(),
                },
                correct: BTreeMap::new(),
            },
            Question::Generation(_) => unreachable!("a generation is not scored"),
        }
    }

    fn of_choice(choice: &Choice, scores: &[Score]) -> Self {
        let log_likelihoods = scores.iter().map(|score| score.log_likelihood);
        let per = |length: fn(&Length) -> usize| {
            let lengths = choice.lengths.iter().map(length);
            let quotients = log_likelihoods.clone().zip(lengths);
            likeliest(quotients.map(|(likelihood, length)| likelihood / length as f64))
        };
        let (chars, bytes) = (
            |length: &Length| length.chars,
            |length: &Length| length.bytes,
        );
        let chosen = [
            (Measure::Acc, likeliest(log_likelihoods.clone())),
            (Measure::AccNorm, per(chars)),
            (Measure::AccBytes, per(bytes)),
        ];
        Self {
            response: Response::Choice {
                gold: choice.gold,
                log_likelihoods: log_likelihoods.collect(),
                tokens: scores.iter().map(|score| score.tokens).collect(),
                chars: choice.lengths.iter().map(chars).collect(),
                bytes: choice.lengths.iter().map(bytes).collect(),
            },
            correct: chosen
                .map(|(measure, index)| (measure, index == choice.gold))
                .into(),
        }
    }

    /// The outcome of what was written.
    pub fn of_text(question: &Generation, text: String) -> Self {
        let reference = question.reference.as_ref();
        let verdicts = reference.map_or_else(Vec::new, |reference| {
            reference.rule.judge(&text, &reference.gold)
        });
        let correct = verdicts
            .iter()
            .map(|verdict| (verdict.measure, verdict.correct));
        let correct = correct.collect();
        let answers = verdicts
            .into_iter()
            .map(|verdict| (verdict.measure, verdict.answer));
        Self {
            response: Response::Generation {
                text,
                gold: reference.map_or_else(String::new, |reference| reference.gold.clone()),
                answers: answers.collect(),
            },
            correct,
        }
    }
}

/// Index of the largest number; the first of equals.
fn likeliest(numbers: impl Iterator<Item = f64>) -> usize {
    let best = numbers
        .enumerate()
        .reduce(|best, next| match next.1 > best.1 {
            true => next,
            false => best,
        });
    best.map_or(0, |(index, _)| index)
}

/// Words as the harness counts them: one more than the stretches of white space.
fn words(text: &str) -> usize {
    let mut was_space = false;
    let starts = text.chars().filter(|c| {
        let starts = c.is_whitespace() && !was_space;
        was_space = c.is_whitespace();
        starts
    });
    starts.count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(log_likelihood: f64) -> Score {
        Score {
            log_likelihood,
            is_greedy: false,
            tokens: 1,
        }
    }

    /// Which measures call the first of two answers the best one.
    fn first_wins(answers: [&str; 2], log_likelihoods: [f64; 2]) -> [bool; 3] {
        let choice = Question::Choice(Choice::after("Q", &answers, 0));
        let outcome = Outcome::of_scores(&choice, &log_likelihoods.map(score));
        [Measure::Acc, Measure::AccNorm, Measure::AccBytes].map(|m| outcome.correct[&m])
    }

    #[test]
    fn answers_are_compared_as_they_are_per_code_point_and_per_byte() {
        assert_eq!(
            first_wins(["ab", "abcd"], [-2.0, -3.0]),
            [true, false, false]
        );
        // Three code points of nine bytes, against six of six.
        assert_eq!(
            first_wins(["€€€", "abcdef"], [-3.0, -3.5]),
            [true, false, true]
        );
    }

    #[test]
    fn the_first_of_equal_answers_wins() {
        assert_eq!(first_wins(["a", "b"], [-1.0, -1.0]), [true; 3]);
        assert_eq!(likeliest([-2.0, -1.0, -1.0].into_iter()), 1);
    }

    #[test]
    fn words_are_what_white_space_separates() {
        for (text, expected) in [("one", 1), ("one  two\n\nthree", 3), (" one ", 3), ("", 1)] {
            assert_eq!(words(text), expected, "{text:?}");
        }
    }

    #[test]
    fn an_outcome_comes_back_from_its_line() {
        let outcomes = [
            Outcome::of_scores(
                &Question::Choice(Choice::after("Q", &["a", "b"], 1)),
                &[score(-1.5), score(-0.25)],
            ),
            Outcome::of_scores(
                &Question::Text("a b".to_owned()),
                &[score(-1.0), score(-2.0)],
            ),
        ];
        for outcome in outcomes {
            let line = serde_json::to_string(&outcome).unwrap();
            assert_eq!(
                serde_json::from_str::<Outcome>(&line).unwrap(),
                outcome,
                "{line}"
            );
        }
    }
}
