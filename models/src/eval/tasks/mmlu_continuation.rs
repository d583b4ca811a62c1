//! MMLU with the answers themselves instead of letters, which suits small models.
//!
//! `The following are questions (with answers) about {subject}.` and an empty line, then per
//! question `Question: {question}\nAnswer:` and one of the four answers.

use serde::Deserialize;

use super::super::question::{Choice, Question};
use super::format::{Format, Shot, load};
use super::{Task, mmlu};

/// The task.
pub(super) const MMLU_CONTINUATION: Task = Task {
    name: "mmlu_continuation",
    about: "examinations in 57 subjects, by the answer's text",
    usual_shots: 0,
    load: load::<Line>,
    ..mmlu::MMLU
};

#[derive(Deserialize)]
#[serde(transparent)]
struct Line(mmlu::Line);

impl Line {
    fn prompt(&self) -> String {
        format!("Question: {}\nAnswer:", self.0.question.trim())
    }
}

impl Format for Line {
    type Shot = Self;

    fn check(&self) -> Result<(), String> {
        Format::check(&self.0)
    }

    fn subject(&self) -> Option<&str> {
        Format::subject(&self.0)
    }

    fn description(&self) -> String {
        let subject = self.0.subject.replace('_', " ");
        format!("The following are questions (with answers) about {subject}.\n\n")
    }

    fn question(&self, before: &str) -> Question {
        let context = before.to_owned() + &self.prompt();
        Question::Choice(Choice::after(&context, &self.0.choices, self.0.answer))
    }
}

impl Shot for Line {
    fn check(&self) -> Result<(), String> {
        Format::check(&self.0)
    }

    fn subject(&self) -> Option<&str> {
        Format::subject(&self.0)
    }

    fn solved(&self) -> String {
        format!("{} {}", self.prompt(), self.0.choices[self.0.answer])
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NO_SHOTS, load, requests};

    #[test]
    fn the_answers_themselves_are_scored() {
        let line = concat!(
            r#"{"subject": "big_sums", "question": "1 + 1?", "choices": ["1", "2", "3", "#,
            r#""4"], "answer": 1}"#
        );
        let loaded = load("mmlu_continuation", &[("mmlu/test.jsonl", line)], NO_SHOTS).unwrap();
        let context = "The following are questions (with answers) about big sums.\n\n\
                       Question: 1 + 1?\nAnswer:";
        let expected = [" 1", " 2", " 3", " 4"].map(|answer| (context, answer));
        assert_eq!(requests(&loaded.items)[0], expected);
    }
}
