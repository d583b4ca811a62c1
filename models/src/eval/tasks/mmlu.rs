//! MMLU: questions of 57 examinations, answered by a letter.
//!
//! `The following are multiple choice questions (with answers) about {subject}.` and an empty line,
//! then per question `{question}\nA. ..\nB. ..\nC. ..\nD. ..\nAnswer:` and ` A` to ` D`.

use serde::Deserialize;

use super::super::outcome::Measure;
use super::super::question::{Choice, Question};
use super::format::{Format, Shot, check_gold, load};
use super::{Group, ShotSource, Task};

/// The task.
pub(super) const MMLU: Task = Task {
    name: "mmlu",
    about: "examinations in 57 subjects, by letter",
    questions: "mmlu/test.jsonl",
    shots: ShotSource::FirstOfSubject("mmlu/dev.jsonl"),
    usual_shots: 5,
    group: Group::BySize,
    measures: &[Measure::Acc],
    load: load::<Line>,
};

const LETTERS: [&str; 4] = ["A", "B", "C", "D"];

/// A line of the published files, which [`super::mmlu_continuation`] reads too.
#[derive(Deserialize)]
pub(super) struct Line {
    /// With underscores for spaces.
    pub(super) subject: String,
    /// As published.
    pub(super) question: String,
    /// Four of them.
    pub(super) choices: [String; 4],
    /// Index of the right one.
    pub(super) answer: usize,
}

impl Line {
    fn prompt(&self) -> String {
        let answers = LETTERS.iter().zip(&self.choices);
        let answers: String = answers
            .map(|(letter, answer)| format!("\n{letter}. {answer}"))
            .collect();
        format!("{}{answers}\nAnswer:", self.question.trim())
    }
}

impl Format for Line {
    type Shot = Self;

    fn check(&self) -> Result<(), String> {
        check_gold(self.answer, self.choices.len())
    }

    fn subject(&self) -> Option<&str> {
        Some(&self.subject)
    }

    fn description(&self) -> String {
        let subject = self.subject.replace('_', " ");
        format!("The following are multiple choice questions (with answers) about {subject}.\n\n")
    }

    fn question(&self, before: &str) -> Question {
        let context = before.to_owned() + &self.prompt();
        Question::Choice(Choice::after(&context, &LETTERS, self.answer))
    }
}

impl Shot for Line {
    fn check(&self) -> Result<(), String> {
        Format::check(self)
    }

    fn subject(&self) -> Option<&str> {
        Format::subject(self)
    }

    fn solved(&self) -> String {
        format!("{} {}", self.prompt(), LETTERS[self.answer])
    }
}

#[cfg(test)]
mod tests {
    use super::super::Amount;
    use super::super::tests::{load, requests};

    fn line(subject: &str, question: &str, answer: usize) -> String {
        serde_json::json!({
            "subject": subject,
            "question": question,
            "choices": ["1", "2", "3", "4"],
            "answer": answer,
        })
        .to_string()
    }

    #[test]
    fn the_subject_is_named_once_and_examples_are_of_it() {
        let test = line("sums_of_few", " One and one? \n", 1);
        let dev = [
            line("other", "No?", 0),
            line("sums_of_few", "Two and two?", 3),
        ]
        .join("\n");
        let files = [("mmlu/test.jsonl", &test[..]), ("mmlu/dev.jsonl", &dev)];
        let amount = |shots| Amount {
            shots: Some(shots),
            limit: None,
        };
        let loaded = load("mmlu", &files, amount(1)).unwrap();
        let context = "The following are multiple choice questions (with answers) about sums of \
                       few.\n\nTwo and two?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: D\n\nOne and one?\n\
                       A. 1\nB. 2\nC. 3\nD. 4\nAnswer:";
        let expected = [" A", " B", " C", " D"].map(|letter| (context, letter));
        assert_eq!(requests(&loaded.items)[0], expected);
        assert_eq!(loaded.items[0].subject, "sums_of_few");
        let without = load("mmlu", &files, amount(0)).unwrap();
        assert!(
            requests(&without.items)[0][0]
                .0
                .starts_with("The following are")
        );
        let error = load("mmlu", &files, amount(2)).unwrap_err();
        assert_eq!(
            error,
            "mmlu/dev.jsonl: 1 examples of sums_of_few, 2 shots are asked for"
        );
    }
}
