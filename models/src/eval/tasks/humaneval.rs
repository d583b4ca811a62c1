//! HumanEval: Python functions to complete. They are written to the file of results, not run.

use serde::Deserialize;

use super::super::question::{Generation, Question};
use super::format::{Format, NoShot, load};
use super::{Group, ShotSource, Task};

/// The task.
pub(super) const HUMANEVAL: Task = Task {
    name: "humaneval",
    about: "Python functions, written to --out and not run",
    questions: "humaneval/HumanEval.jsonl",
    shots: ShotSource::Absent,
    usual_shots: 0,
    group: Group::Single,
    measures: &[],
    load: load::<Line>,
};

#[derive(Deserialize)]
struct Line {
    task_id: String,
    prompt: String,
}

impl Format for Line {
    type Shot = NoShot;

    fn check(&self) -> Result<(), String> {
        match self.prompt.is_empty() {
            true => Err("the prompt is empty".to_owned()),
            false => Ok(()),
        }
    }

    fn id(&self) -> Option<String> {
        Some(self.task_id.clone())
    }

    fn question(&self, _before: &str) -> Question {
        Question::Generation(Generation {
            prompt: self.prompt.clone(),
            stops: &["\nclass", "\ndef", "\n#", "\nif", "\nprint"],
            max_tokens: 1024,
            reference: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NO_SHOTS, load};
    use super::*;

    #[test]
    fn the_prompt_is_given_as_it_is() {
        let line = concat!(
            r#"{"task_id": "HumanEval/7", "prompt": "def f(x):\n    ", "test": "", "#,
            r#""entry_point": "f"}"#
        );
        let loaded = load(
            "humaneval",
            &[("humaneval/HumanEval.jsonl", line)],
            NO_SHOTS,
        )
        .unwrap();
        let Question::Generation(generation) = &loaded.items[0].question else {
            unreachable!()
        };
        assert_eq!(generation.prompt, "def f(x):\n    ");
        assert_eq!(generation.reference, None);
        assert_eq!(loaded.items[0].id, "HumanEval/7");
    }
}
