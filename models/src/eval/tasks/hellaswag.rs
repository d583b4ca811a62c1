//! HellaSwag: which sentence goes on.
//!
//! Context `{activity_label}: {ctx_a} {Ctx_b}` and one of four endings, both cleaned: trimmed,
//! ` [title]` to `. `, other marks in brackets deleted, double spaces to single ones in one pass.
//! Lines are as the authors' file has them, or cleaned already (`query`, `choices`, `gold`).

use std::sync::LazyLock;

use regex::Regex;
use serde::Deserialize;

use super::super::outcome::Measure;
use super::super::question::{Choice, Question};
use super::format::{Format, Shot, check_gold, load};
use super::{Group, ShotSource, Task};

/// The task.
pub(super) const HELLASWAG: Task = Task {
    name: "hellaswag",
    about: "how a scene goes on, 4 endings",
    questions: "hellaswag/val.jsonl",
    shots: ShotSource::Drawn("hellaswag/train.jsonl"),
    usual_shots: 0,
    group: Group::Single,
    measures: &[Measure::AccNorm, Measure::Acc],
    load: load::<Line>,
};

#[derive(Deserialize)]
#[serde(from = "Stored")]
struct Line {
    ind: u64,
    query: String,
    choices: Vec<String>,
    gold: usize,
}

/// What a file has.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Clean {
        ind: u64,
        query: String,
        choices: Vec<String>,
        gold: usize,
    },
    Raw {
        ind: u64,
        activity_label: String,
        ctx_a: String,
        ctx_b: String,
        endings: Vec<String>,
        label: Label,
    },
}

/// A number that some files have as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    Number(usize),
    Text(String),
}

impl From<Stored> for Line {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Clean {
                ind,
                query,
                choices,
                gold,
            } => Self {
                ind,
                query,
                choices,
                gold,
            },
            Stored::Raw {
                ind,
                activity_label,
                ctx_a,
                ctx_b,
                endings,
                label,
            } => Self {
                ind,
                query: clean(&format!(
                    "{activity_label}: {ctx_a} {}",
                    capitalized(&ctx_b)
                )),
                choices: endings.iter().map(|ending| clean(ending)).collect(),
                gold: match label {
                    Label::Number(gold) => gold,
                    // What is no number is no index, and is refused as one.
                    Label::Text(text) => text.parse().unwrap_or(usize::MAX),
                },
            },
        }
    }
}

/// The cleaning of the header.
fn clean(text: &str) -> String {
    static MARK: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\[.*?\]").expect("a pattern that the tests compile"));
    let text = text.trim().replace(" [title]", ". ");
    MARK.replace_all(&text, "").replace("  ", " ")
}

/// The first letter large and all others small.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars.as_str().to_lowercase().chars()).collect()
}

impl Format for Line {
    type Shot = Self;

    fn check(&self) -> Result<(), String> {
        check_gold(self.gold, self.choices.len())
    }

    fn id(&self) -> Option<String> {
        Some(self.ind.to_string())
    }

    fn question(&self, before: &str) -> Question {
        let context = before.to_owned() + &self.query;
        Question::Choice(Choice::after(&context, &self.choices, self.gold))
    }
}

impl Shot for Line {
    fn check(&self) -> Result<(), String> {
        Format::check(self)
    }

    fn solved(&self) -> String {
        format!("{} {}", self.query, self.choices[self.gold])
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NO_SHOTS, gold, load, requests};

    #[test]
    fn raw_lines_are_cleaned() {
        let line = concat!(
            r#"{"ind": 4, "activity_label": "Baking", "#,
            r#""ctx_a": "How to bake [title] Heat it. [step] Wait.", "#,
            r#""ctx_b": "then THE dough", "endings": ["rises. [substeps] Eat.", "#,
            r#""[header] sings."], "label": "1"}"#
        );
        let loaded = load("hellaswag", &[("hellaswag/val.jsonl", line)], NO_SHOTS).unwrap();
        let context = "Baking: How to bake. Heat it. Wait. Then the dough";
        // An ending that began with a mark keeps the space behind it.
        let expected = [vec![(context, " rises. Eat."), (context, "  sings.")]];
        assert_eq!(requests(&loaded.items), expected);
        assert_eq!((gold(&loaded.items[0]), &loaded.items[0].id[..]), (1, "4"));
    }

    #[test]
    fn clean_lines_stay_as_they_are() {
        let line = r#"{"ind": 0, "query": "A [x] He", "choices": ["sits.", "eats."], "gold": 0}"#;
        let loaded = load("hellaswag", &[("hellaswag/val.jsonl", line)], NO_SHOTS).unwrap();
        assert_eq!(requests(&loaded.items)[0][0], ("A [x] He", " sits."));
    }
}
