//! GSM8K: word problems of grade school, worked out in the model's words.
//!
//! `Question: {question}\nAnswer:`, which the model continues; examples have the whole published
//! answer, which ends with `#### ` and the number.

use serde::Deserialize;

use super::super::answers::AnswerRule;
use super::super::outcome::Measure;
use super::super::question::{Generation, Question, Reference};
use super::format::{Format, Shot, load};
use super::{Group, ShotSource, Task};

/// The task.
pub(super) const GSM8K: Task = Task {
    name: "gsm8k",
    about: "word problems, worked out",
    questions: "gsm8k/test.jsonl",
    shots: ShotSource::Drawn("gsm8k/train.jsonl"),
    usual_shots: 5,
    group: Group::Single,
    measures: &[Measure::ExactMatch, Measure::FlexibleExtract],
    load: load::<Line>,
};

#[derive(Deserialize)]
struct Line {
    question: String,
    answer: String,
}

impl Line {
    fn prompt(&self) -> String {
        format!("Question: {}\nAnswer:", self.question)
    }
}

impl Format for Line {
    type Shot = Self;

    fn check(&self) -> Result<(), String> {
        match self.answer.contains("#### ") {
            true => Ok(()),
            false => Err("the answer has no `#### ` before its number".to_owned()),
        }
    }

    fn question(&self, before: &str) -> Question {
        Question::Generation(Generation {
            prompt: before.to_owned() + &self.prompt(),
            stops: &["Question:", "</s>", "<|im_end|>"],
            max_tokens: 256,
            reference: Some(Reference {
                rule: AnswerRule::Gsm8k,
                gold: self.answer.clone(),
            }),
        })
    }
}

impl Shot for Line {
    fn check(&self) -> Result<(), String> {
        Format::check(self)
    }

    fn solved(&self) -> String {
        format!("{} {}", self.prompt(), self.answer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Amount;
    use super::super::tests::load;
    use super::*;

    /// Prompts of two questions with these examples.
    fn prompts(shots: usize, train: &str) -> Vec<String> {
        let test = r#"{"question": "How many?", "answer": "Two.\n#### 2"}"#;
        let test = [test, test].join("\n");
        let files = [
            ("gsm8k/test.jsonl", &test[..]),
            ("gsm8k/train.jsonl", train),
        ];
        let amount = Amount {
            shots: Some(shots),
            limit: None,
        };
        let items = load("gsm8k", &files, amount).unwrap().items.into_iter();
        items
            .map(|item| match item.question {
                Question::Generation(generation) => generation.prompt,
                Question::Choice(_) | Question::Completion(_) | Question::Text(_) => unreachable!(),
            })
            .collect()
    }

    #[test]
    fn an_example_has_the_whole_answer() {
        let train = r#"{"question": "And then?", "answer": "One <<1=1>>1.\n#### 1"}"#;
        assert_eq!(
            prompts(1, train)[0],
            "Question: And then?\nAnswer: One <<1=1>>1.\n#### 1\n\nQuestion: How many?\nAnswer:"
        );
    }

    /// `r = random.Random(1234); r.sample(range(30), 2)` twice, in CPython.
    #[test]
    fn examples_are_drawn_anew_for_each_question() {
        let line = |n| format!(r#"{{"question": "{n}", "answer": "\n#### {n}"}}"#);
        let train: Vec<String> = (0..30).map(line).collect();
        let drawn: Vec<Vec<String>> = prompts(2, &train.join("\n"))
            .iter()
            .map(|prompt| {
                let answers = prompt.split("#### ").skip(1);
                answers
                    .map(|rest| rest.lines().next().unwrap().to_owned())
                    .collect()
            })
            .collect();
        assert_eq!(drawn, DRAWN);
    }

    const DRAWN: [[&str; 2]; 2] = [["24", "14"], ["3", "0"]];
}
