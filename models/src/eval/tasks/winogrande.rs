//! WinoGrande: whom or what a blank in a sentence stands for.
//!
//! The answers are in the context here: the sentence up to the blank with either option, and in
//! both cases the rest of the sentence is scored.

use serde::Deserialize;

use super::super::outcome::Measure;
use super::super::question::{Choice, Length, Pair, Question};
use super::format::{Format, Shot, load};
use super::{Group, ShotSource, Task};

/// The task.
pub(super) const WINOGRANDE: Task = Task {
    name: "winogrande",
    about: "what a blank stands for, 2 options",
    questions: "winogrande/val.jsonl",
    shots: ShotSource::Drawn("winogrande/train.jsonl"),
    usual_shots: 0,
    group: Group::Single,
    measures: &[Measure::Acc],
    load: load::<Line>,
};

#[derive(Deserialize)]
struct Line {
    sentence: String,
    option1: String,
    option2: String,
    answer: Answer,
}

#[derive(Clone, Copy, Deserialize)]
enum Answer {
    #[serde(rename = "1")]
    First,
    #[serde(rename = "2")]
    Second,
}

impl Line {
    /// The sentence before and behind the blank.
    fn halves(&self) -> (&str, &str) {
        self.sentence
            .split_once('_')
            .unwrap_or((&self.sentence, ""))
    }

    /// The sentence up to and with either option.
    fn contexts(&self) -> [String; 2] {
        let (start, _) = self.halves();
        [&self.option1, &self.option2].map(|option| format!("{start}{option}"))
    }

    /// What is scored, with the space before it.
    fn rest(&self) -> String {
        format!(" {}", self.halves().1.trim())
    }

    fn gold(&self) -> usize {
        match self.answer {
            Answer::First => 0,
            Answer::Second => 1,
        }
    }
}

impl Format for Line {
    type Shot = Self;

    fn check(&self) -> Result<(), String> {
        match self.sentence.contains('_') {
            true => Ok(()),
            false => Err("the sentence has no blank `_`".to_owned()),
        }
    }

    fn question(&self, before: &str) -> Question {
        let contexts = self.contexts();
        let pair = |context: &String| Pair {
            context: format!("{before}{context}"),
            continuation: self.rest(),
        };
        Question::Choice(Choice {
            pairs: contexts.iter().map(pair).collect(),
            lengths: contexts.iter().map(|context| Length::of(context)).collect(),
            gold: self.gold(),
        })
    }
}

impl Shot for Line {
    fn check(&self) -> Result<(), String> {
        Format::check(self)
    }

    fn solved(&self) -> String {
        let [first, second] = self.contexts();
        let context = match self.answer {
            Answer::First => first,
            Answer::Second => second,
        };
        context + &self.rest()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Amount;
    use super::super::tests::{NO_SHOTS, gold, load, requests};

    const LINE: &str = concat!(
        r#"{"sentence": "The cup broke, so _ was swept up.", "option1": "the cup", "#,
        r#""option2": "the broom", "answer": "2"}"#
    );

    #[test]
    fn the_options_are_in_the_context_and_the_rest_is_scored() {
        let loaded = load("winogrande", &[("winogrande/val.jsonl", LINE)], NO_SHOTS).unwrap();
        let expected = [vec![
            ("The cup broke, so the cup", " was swept up."),
            ("The cup broke, so the broom", " was swept up."),
        ]];
        assert_eq!(requests(&loaded.items), expected);
        assert_eq!(gold(&loaded.items[0]), 1);
    }

    #[test]
    fn an_example_has_the_right_option() {
        let files = [
            ("winogrande/val.jsonl", LINE),
            ("winogrande/train.jsonl", LINE),
        ];
        let amount = Amount {
            shots: Some(1),
            limit: None,
        };
        let loaded = load("winogrande", &files, amount).unwrap();
        assert_eq!(
            requests(&loaded.items)[0][0].0,
            "The cup broke, so the broom was swept up.\n\nThe cup broke, so the cup"
        );
    }

    #[test]
    fn a_sentence_without_a_blank_is_refused() {
        let line = LINE.replace('_', "it");
        let error = load("winogrande", &[("winogrande/val.jsonl", &line)], NO_SHOTS).unwrap_err();
        assert_eq!(
            error,
            "winogrande/val.jsonl: line 1: the sentence has no blank `_`"
        );
    }
}
