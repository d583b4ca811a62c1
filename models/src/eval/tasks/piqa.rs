//! PIQA: which of two ways to reach a goal works.
//!
//! `Question: {goal}\nAnswer:` and one of two solutions.

use serde::Deserialize;

use super::super::outcome::Measure;
use super::super::question::{Choice, Question};
use super::format::{Format, Shot, check_gold, load};
use super::{Group, ShotSource, Task};

/// The task.
pub(super) const PIQA: Task = Task {
    name: "piqa",
    about: "physical common sense, 2 answers",
    questions: "piqa/valid.jsonl",
    shots: ShotSource::Drawn("piqa/train.jsonl"),
    usual_shots: 0,
    group: Group::Single,
    measures: &[Measure::Acc, Measure::AccNorm],
    load: load::<Line>,
};

#[derive(Deserialize)]
struct Line {
    goal: String,
    sol1: String,
    sol2: String,
    label: usize,
}

impl Line {
    fn prompt(&self) -> String {
        format!("Question: {}\nAnswer:", self.goal)
    }

    fn solutions(&self) -> [&str; 2] {
        [&self.sol1, &self.sol2]
    }
}

impl Format for Line {
    type Shot = Self;

    fn check(&self) -> Result<(), String> {
        check_gold(self.label, 2)
    }

    fn question(&self, before: &str) -> Question {
        let context = before.to_owned() + &self.prompt();
        Question::Choice(Choice::after(&context, &self.solutions(), self.label))
    }
}

impl Shot for Line {
    fn check(&self) -> Result<(), String> {
        Format::check(self)
    }

    fn solved(&self) -> String {
        format!("{} {}", self.prompt(), self.solutions()[self.label])
    }
}

#[cfg(test)]
mod tests {
    use super::super::Amount;
    use super::super::tests::{NO_SHOTS, gold, load, requests};

    const LINE: &str =
        r#"{"goal": "warm soup", "sol1": "use a pot ", "sol2": "use ice", "label": 1}"#;
    const TRAIN: &str =
        r#"{"goal": "cut bread", "sol1": "a knife", "sol2": "a spoon", "label": 0}"#;

    #[test]
    fn a_goal_is_a_question_and_solutions_keep_their_spaces() {
        let loaded = load("piqa", &[("piqa/valid.jsonl", LINE)], NO_SHOTS).unwrap();
        let context = "Question: warm soup\nAnswer:";
        let expected = [vec![(context, " use a pot "), (context, " use ice")]];
        assert_eq!(requests(&loaded.items), expected);
        let item = &loaded.items[0];
        assert_eq!(
            (gold(item), &item.subject[..], &item.id[..]),
            (1, "piqa", "1")
        );
    }

    #[test]
    fn examples_come_solved_and_apart() {
        let files = [("piqa/valid.jsonl", LINE), ("piqa/train.jsonl", TRAIN)];
        let amount = |shots| Amount {
            shots: Some(shots),
            limit: None,
        };
        let loaded = load("piqa", &files, amount(1)).unwrap();
        assert_eq!(
            requests(&loaded.items)[0][1].0,
            "Question: cut bread\nAnswer: a knife\n\nQuestion: warm soup\nAnswer:"
        );
        let error = load("piqa", &files, amount(2)).unwrap_err();
        assert_eq!(error, "piqa/train.jsonl: 1 examples, 2 shots are asked for");
        let error = load("piqa", &files[..1], amount(2)).unwrap_err();
        assert!(
            error.starts_with("piqa/train.jsonl: no such file"),
            "{error}"
        );
    }

    /// Examples were in no fingerprint: results with others were compared.
    #[test]
    fn other_examples_are_another_fingerprint_where_they_are_asked_for() {
        let other = TRAIN.replace("cut bread", "cut cheese");
        let fingerprint = |train: &str, shots| {
            let files = [("piqa/valid.jsonl", LINE), ("piqa/train.jsonl", train)];
            let shots = Some(shots);
            let loaded = load("piqa", &files, Amount { shots, limit: None });
            loaded.unwrap().fingerprint
        };
        assert_eq!(fingerprint(TRAIN, 1), fingerprint(TRAIN, 1));
        assert_ne!(fingerprint(TRAIN, 1), fingerprint(&other, 1));
        assert_eq!(fingerprint(TRAIN, 0), fingerprint(&other, 0));
        let without = load("piqa", &[("piqa/valid.jsonl", LINE)], NO_SHOTS).unwrap();
        assert_eq!(fingerprint(TRAIN, 0), without.fingerprint);
    }

    #[test]
    fn an_answer_that_there_is_not_is_refused_with_its_line() {
        let broken = format!("{LINE}\n{}", LINE.replace("1}", "2}"));
        let error = load("piqa", &[("piqa/valid.jsonl", &broken)], NO_SHOTS).unwrap_err();
        assert_eq!(
            error,
            "piqa/valid.jsonl: line 2: the right answer is number 2, counted from 0, of 2"
        );
    }
}
