//! MMLU-Pro: questions with up to ten answers, reasoned about before the letter.
//!
//! A description with the category, then per question `Question:`, `Options:` with a letter each,
//! and `Answer: Let's think step by step.`, which the model continues. Examples are of the
//! category; their file has the options as one text, with letters, and the reasoning as `solution`.

use serde::Deserialize;

use super::super::answers::AnswerRule;
use super::super::outcome::Measure;
use super::super::question::{Generation, Question, Reference};
use super::format::{Format, Shot, check_gold, load};
use super::{Group, ShotSource, Task};

/// The task.
pub(super) const MMLU_PRO: Task = Task {
    name: "mmlu_pro",
    about: "examinations in 14 categories, reasoned, up to 10 answers",
    questions: "mmlu_pro/test.jsonl",
    shots: ShotSource::FirstOfSubject("mmlu_pro/fewshot_tigerlab.jsonl"),
    usual_shots: 5,
    group: Group::BySize,
    measures: &[Measure::ExactMatch],
    load: load::<Line>,
};

const LETTERS: [&str; 10] = ["A", "B", "C", "D", "E", "F", "G", "H", "I", "J"];

#[derive(Deserialize)]
struct Line {
    question_id: u64,
    question: String,
    options: Vec<String>,
    answer_index: usize,
    category: String,
}

#[derive(Deserialize)]
struct Example {
    category: String,
    question: String,
    /// One a line, with their letters.
    options: String,
    solution: String,
}

/// A question with its options, one a line, up to where the reasoning begins.
fn prompt(question: &str, options: &str) -> String {
    format!("Question:\n{question}\nOptions:\n{options}\nAnswer: Let's think step by step.")
}

impl Format for Line {
    type Shot = Example;

    fn check(&self) -> Result<(), String> {
        if self.options.len() > LETTERS.len() {
            return Err(format!(
                "{} options, at most 10 have a letter",
                self.options.len()
            ));
        }
        check_gold(self.answer_index, self.options.len())
    }

    fn subject(&self) -> Option<&str> {
        Some(&self.category)
    }

    fn id(&self) -> Option<String> {
        Some(self.question_id.to_string())
    }

    fn description(&self) -> String {
        format!(
            "The following are multiple choice questions (with answers) about {}. Think step by \
             step and then finish your answer with \"the answer is (X)\" where X is the correct \
             letter choice.\n",
            self.category
        )
    }

    fn question(&self, before: &str) -> Question {
        let options = LETTERS.iter().zip(&self.options);
        let options: Vec<String> = options
            .map(|(letter, option)| format!("{letter}. {}", option.trim()))
            .collect();
        Question::Generation(Generation {
            prompt: before.to_owned() + &prompt(&self.question, &options.join("\n")),
            stops: &["Question:"],
            max_tokens: 2048,
            reference: Some(Reference {
                rule: AnswerRule::MmluPro,
                gold: LETTERS[self.answer_index].to_owned(),
            }),
        })
    }
}

impl Shot for Example {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn subject(&self) -> Option<&str> {
        Some(&self.category)
    }

    fn solved(&self) -> String {
        format!(
            "{} {}",
            prompt(&self.question, &self.options),
            self.solution
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Amount;
    use super::super::tests::load;
    use super::*;

    #[test]
    fn options_have_letters_and_the_example_ends_with_its_answer() {
        let line = concat!(
            r#"{"question_id": 70, "question": "Which is red?", "options": [" grass", "#,
            r#""blood "], "answer": "B", "answer_index": 1, "category": "art"}"#
        );
        let shot = concat!(
            r#"{"category": "art", "question": "Which is blue?", "#,
            r#""options": "A. sky\nB. sun", "solution": "Look up. The answer is (A).", "#,
            r#""topic": "art"}"#
        );
        let files = [
            ("mmlu_pro/test.jsonl", line),
            ("mmlu_pro/fewshot_tigerlab.jsonl", shot),
        ];
        let amount = Amount {
            shots: Some(1),
            limit: None,
        };
        let loaded = load("mmlu_pro", &files, amount).unwrap();
        let Question::Generation(generation) = &loaded.items[0].question else {
            unreachable!()
        };
        assert_eq!(
            generation.prompt,
            "The following are multiple choice questions (with answers) about art. Think step by \
             step and then finish your answer with \"the answer is (X)\" where X is the correct \
             letter choice.\n\
             Question:\nWhich is blue?\nOptions:\nA. sky\nB. sun\n\
             Answer: Let's think step by step. Look up. The answer is (A).\n\n\
             Question:\nWhich is red?\nOptions:\nA. grass\nB. blood\n\
             Answer: Let's think step by step."
        );
        assert_eq!(generation.reference.as_ref().unwrap().gold, "B");
        assert_eq!(
            (generation.stops, generation.max_tokens),
            (&["Question:"][..], 2048)
        );
    }
}
