//! BLiMP: which of two sentences is English.
//!
//! Neither has a context. One file per phenomenon, of 1000 pairs each; all phenomena count alike.

use serde::Deserialize;

use super::super::outcome::Measure;
use super::super::question::{Choice, Question};
use super::format::{Format, NoShot, load};
use super::{Group, ShotSource, Task};

/// The task.
pub(super) const BLIMP: Task = Task {
    name: "blimp",
    about: "which of 2 sentences is grammatical, 67 phenomena",
    questions: "blimp",
    shots: ShotSource::Absent,
    usual_shots: 0,
    group: Group::OfParts,
    measures: &[Measure::Acc],
    load: load::<Line>,
};

#[derive(Deserialize)]
struct Line {
    sentence_good: String,
    sentence_bad: String,
}

impl Format for Line {
    type Shot = NoShot;

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn question(&self, _before: &str) -> Question {
        let sentences = [&self.sentence_good, &self.sentence_bad];
        Question::Choice(Choice::after("", &sentences, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Amount;
    use super::super::tests::{NO_SHOTS, gold, load, requests};

    #[test]
    fn sentences_have_no_context_and_subjects_are_files() {
        let line =
            |n| format!(r#"{{"sentence_good": "It runs {n}.", "sentence_bad": "It run {n}."}}"#);
        let (first, second) = (line(1), [line(2), line(3)].join("\n"));
        let files = [("blimp/b.jsonl", &second[..]), ("blimp/a.jsonl", &first)];
        let loaded = load("blimp", &files, NO_SHOTS).unwrap();
        assert_eq!(
            requests(&loaded.items)[0],
            [("", " It runs 1."), ("", " It run 1.")]
        );
        assert_eq!(gold(&loaded.items[0]), 0);
        let names = |items: &[super::super::Item]| -> Vec<_> {
            items
                .iter()
                .map(|item| format!("{} {}", item.subject, item.id))
                .collect()
        };
        assert_eq!(names(&loaded.items), ["a 1", "b 1", "b 2"]);
        let limit = Amount {
            shots: None,
            limit: Some(1),
        };
        let limited = load("blimp", &files, limit).unwrap();
        assert_eq!(names(&limited.items), ["a 1", "b 1"]);
        assert_eq!(limited.fingerprint, loaded.fingerprint);
    }
}
