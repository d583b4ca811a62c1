//! ARC: science questions of school examinations, in an easy and a challenging set.
//!
//! `Question: {question}\nAnswer:` and one of three to five answers. Lines are as the AI2 files
//! have them (`choices.text`, `choices.label`, `answerKey`) or with plain `choices` and `gold`.

use serde::Deserialize;

use super::super::outcome::Measure;
use super::super::question::{Choice, Question};
use super::format::{Format, Shot, check_gold, load};
use super::{Group, ShotSource, Task};

/// The easy set.
pub(super) const EASY: Task = Task {
    name: "arc_easy",
    about: "science questions, 3 to 5 answers",
    questions: "arc/arc_easy_test.jsonl",
    shots: ShotSource::Drawn("arc/arc_easy_train.jsonl"),
    usual_shots: 0,
    group: Group::Single,
    measures: &[Measure::Acc, Measure::AccNorm],
    load: load::<Line>,
};

/// The set of questions that simple methods got wrong.
pub(super) const CHALLENGE: Task = Task {
    name: "arc_challenge",
    about: "harder science questions, 3 to 5 answers",
    questions: "arc/arc_challenge_test.jsonl",
    shots: ShotSource::Drawn("arc/arc_challenge_train.jsonl"),
    measures: &[Measure::AccNorm, Measure::Acc],
    ..EASY
};

#[derive(Deserialize)]
struct Line {
    id: String,
    question: String,
    #[serde(flatten)]
    answers: Answers,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answers {
    Plain {
        choices: Vec<String>,
        gold: usize,
    },
    Labelled {
        choices: Labelled,
        #[serde(rename = "answerKey")]
        answer_key: String,
    },
}

#[derive(Deserialize)]
struct Labelled {
    text: Vec<String>,
    label: Vec<String>,
}

impl Line {
    fn prompt(&self) -> String {
        format!("Question: {}\nAnswer:", self.question)
    }

    /// The answers, and the index of the right one; beyond them if no label is the key.
    fn answers(&self) -> (&[String], usize) {
        match &self.answers {
            Answers::Plain { choices, gold } => (choices, *gold),
            Answers::Labelled {
                choices,
                answer_key,
            } => {
                let gold = choices.label.iter().position(|label| label == answer_key);
                (&choices.text, gold.unwrap_or(choices.text.len()))
            }
        }
    }
}

impl Format for Line {
    type Shot = Self;

    fn check(&self) -> Result<(), String> {
        let (answers, gold) = self.answers();
        check_gold(gold, answers.len())
    }

    fn id(&self) -> Option<String> {
        Some(self.id.clone())
    }

    fn question(&self, before: &str) -> Question {
        let (answers, gold) = self.answers();
        let context = before.to_owned() + &self.prompt();
        Question::Choice(Choice::after(&context, answers, gold))
    }
}

impl Shot for Line {
    fn check(&self) -> Result<(), String> {
        Format::check(self)
    }

    fn solved(&self) -> String {
        let (answers, gold) = self.answers();
        format!("{} {}", self.prompt(), answers[gold])
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NO_SHOTS, gold, load, requests};

    #[test]
    fn both_spellings_ask_the_same() {
        let plain =
            r#"{"id": "q1", "question": "What falls?", "choices": ["rain", "light"], "gold": 1}"#;
        let labelled = concat!(
            r#"{"id": "q1", "question": "What falls?", "choices": {"text": ["rain", "#,
            r#""light"], "label": ["1", "2"]}, "answerKey": "2"}"#
        );
        for (name, line) in [("arc_easy", plain), ("arc_challenge", labelled)] {
            let file = format!("arc/{name}_test.jsonl");
            let loaded = load(name, &[(&file, line)], NO_SHOTS).unwrap();
            let context = "Question: What falls?\nAnswer:";
            let expected = [vec![(context, " rain"), (context, " light")]];
            assert_eq!(requests(&loaded.items), expected);
            assert_eq!((gold(&loaded.items[0]), &loaded.items[0].id[..]), (1, "q1"));
        }
    }

    #[test]
    fn a_key_without_a_label_is_refused() {
        let line = concat!(
            r#"{"id": "q1", "question": "?", "choices": {"text": ["a"], "label": ["A"]}, "#,
            r#""answerKey": "B"}"#
        );
        let error = load("arc_easy", &[("arc/arc_easy_test.jsonl", line)], NO_SHOTS).unwrap_err();
        assert!(
            error.contains("line 1: the right answer is number 1"),
            "{error}"
        );
    }
}
