//! LAMBADA: the last word of a passage, which only the whole passage gives away.
//!
//! The context is the passage without its last word, the continuation a space and that word. Lines
//! have the two apart.

use serde::Deserialize;

use super::super::outcome::Measure;
use super::super::question::{Pair, Question};
use super::format::{Format, NoShot, load};
use super::{Group, ShotSource, Task};

/// The passages as OpenAI cleaned them.
pub(super) const OPENAI: Task = Task {
    name: "lambada_openai",
    about: "the last word of a passage",
    questions: "lambada/lambada_openai_test.jsonl",
    shots: ShotSource::Absent,
    usual_shots: 0,
    group: Group::Single,
    measures: &[Measure::Acc, Measure::Perplexity],
    load: load::<Line>,
};

#[derive(Deserialize)]
struct Line {
    context: String,
    continuation: String,
}

impl Format for Line {
    type Shot = NoShot;

    fn check(&self) -> Result<(), String> {
        match self.continuation.is_empty() {
            true => Err("the continuation is empty".to_owned()),
            false => Ok(()),
        }
    }

    fn question(&self, _before: &str) -> Question {
        Question::Completion(Pair {
            context: self.context.clone(),
            continuation: format!(" {}", self.continuation),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Amount;
    use super::super::tests::{NO_SHOTS, load, requests};

    const FILE: &str = "lambada/lambada_openai_test.jsonl";
    const LINE: &str = r#"{"context": "He called the dog, but it was a", "continuation": "cat."}"#;

    #[test]
    fn the_last_word_follows_a_space() {
        let loaded = load("lambada_openai", &[(FILE, LINE)], NO_SHOTS).unwrap();
        let expected = [vec![("He called the dog, but it was a", " cat.")]];
        assert_eq!(requests(&loaded.items), expected);
    }

    #[test]
    fn examples_are_refused() {
        let amount = Amount {
            shots: Some(2),
            limit: None,
        };
        let error = load("lambada_openai", &[(FILE, LINE)], amount).unwrap_err();
        assert_eq!(error, "task lambada_openai takes no shots, 2 are asked for");
    }
}
