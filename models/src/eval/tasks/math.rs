//! MATH-500: 500 problems of competitions, worked out in the model's words.
//!
//! `Problem:\n{problem}\n\nSolution:`, which the model continues. The harness puts four worked
//! problems of arXiv:2206.14858 in front; they are not among the files here, so the usual number is
//! none, and `--shots 4` reads them from a file of `problem` and `solution`.

use serde::Deserialize;

use super::super::answers::{AnswerRule, math::last_boxed};
use super::super::outcome::Measure;
use super::super::question::{Generation, Question, Reference};
use super::format::{Format, Shot, load};
use super::{Group, ShotSource, Task};

/// The 500 problems that "Let's verify step by step" (arXiv:2305.20050) keeps for tests.
pub(super) const MATH_500: Task = Task {
    name: "math_500",
    about: "problems of competitions, worked out",
    questions: "math/math500_test.jsonl",
    shots: ShotSource::First("math/shots.jsonl"),
    usual_shots: 0,
    group: Group::BySize,
    measures: &[Measure::ExactMatch, Measure::BoxedMatch],
    load: load::<Line>,
};

#[derive(Deserialize)]
struct Line {
    problem: String,
    solution: String,
    subject: String,
    unique_id: String,
}

#[derive(Deserialize)]
struct Example {
    problem: String,
    solution: String,
}

fn prompt(problem: &str) -> String {
    format!("Problem:\n{problem}\n\nSolution:")
}

impl Format for Line {
    type Shot = Example;

    fn check(&self) -> Result<(), String> {
        match last_boxed(&self.solution) {
            Some(_) => Ok(()),
            None => Err("the solution has no \\boxed{} answer".to_owned()),
        }
    }

    fn subject(&self) -> Option<&str> {
        Some(&self.subject)
    }

    fn id(&self) -> Option<String> {
        Some(self.unique_id.clone())
    }

    fn question(&self, before: &str) -> Question {
        Question::Generation(Generation {
            prompt: before.to_owned() + &prompt(&self.problem),
            stops: &["Problem:"],
            max_tokens: 256,
            reference: Some(Reference {
                rule: AnswerRule::Math,
                gold: last_boxed(&self.solution).unwrap_or_default().to_owned(),
            }),
        })
    }
}

impl Shot for Example {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn solved(&self) -> String {
        format!("{} {}", prompt(&self.problem), self.solution)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Amount;
    use super::super::tests::load;
    use super::*;

    const LINE: &str = concat!(
        r#"{"problem": "Add 1 to 1.", "solution": "It is $\\boxed{2}$.", "answer": "2", "#,
        r#""subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json"}"#
    );

    #[test]
    fn the_answer_is_the_one_in_the_box() {
        let shot = r#"{"problem": "Add 2 to 2.", "solution": "It is 4."}"#;
        let files = [
            ("math/math500_test.jsonl", LINE),
            ("math/shots.jsonl", shot),
        ];
        let amount = Amount {
            shots: Some(1),
            limit: None,
        };
        let loaded = load("math_500", &files, amount).unwrap();
        let Question::Generation(generation) = &loaded.items[0].question else {
            unreachable!()
        };
        assert_eq!(
            generation.prompt,
            "Problem:\nAdd 2 to 2.\n\nSolution: It is 4.\n\nProblem:\nAdd 1 to 1.\n\nSolution:"
        );
        assert_eq!(generation.reference.as_ref().unwrap().gold, "2");
        assert_eq!(loaded.items[0].subject, "Algebra");
    }

    #[test]
    fn a_solution_without_an_answer_is_refused() {
        let line = LINE.replace("boxed", "text");
        let amount = Amount::default();
        let error = load("math_500", &[("math/math500_test.jsonl", &line)], amount).unwrap_err();
        assert!(
            error.contains("line 1: the solution has no \\boxed{} answer"),
            "{error}"
        );
    }
}
