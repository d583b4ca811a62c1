//! Files of evaluation sets, of results, and what a model writes.

use burn_nvfp4_models::data::Tokenizer;
use burn_nvfp4_models::eval::answers::AnswerRule;
use burn_nvfp4_models::eval::compare::compare;
use burn_nvfp4_models::eval::encode::Encoder;
use burn_nvfp4_models::eval::question::Question;
use burn_nvfp4_models::eval::results::Results;
use burn_nvfp4_models::eval::tasks::{Amount, ShotSource, Task, text};

use crate::bundle::{Bundle, Desk};

/// The window of the model that questions are encoded for.
const WINDOW: usize = 256;

/// Reads the items of the task that the part `task` names, and encodes them as bytes.
pub(super) fn items(desk: &Desk, bundle: &Bundle<'_>) -> bool {
    let name = bundle.text("task");
    let questions = bundle.part("questions").unwrap_or_default();
    let loaded = match Task::by_name(name.trim()) {
        Some(task) => {
            let folder = desk.path("tasks");
            let path = match task.questions.ends_with(".jsonl") {
                true => folder.join(task.questions),
                false => folder.join(task.questions).join("part.jsonl"),
            };
            desk.write(&path, questions);
            let shots = bundle.part("shots");
            let source = match task.shots {
                ShotSource::Absent => None,
                ShotSource::First(file)
                | ShotSource::FirstOfSubject(file)
                | ShotSource::Drawn(file) => Some(file),
            };
            if let (Some(file), Some(shots)) = (source, shots) {
                desk.write(&folder.join(file), shots);
            }
            let amount = Amount {
                shots: Some(usize::from(shots.is_some())),
                limit: Some(8),
            };
            task.load(&folder, amount)
        }
        None => {
            let path = desk.path("text.txt");
            desk.write(&path, questions);
            text::load(&[path])
        }
    };
    let Ok(loaded) = loaded else {
        return false;
    };
    let encoder = Encoder {
        tokenizer: &Tokenizer::Bytes,
        window: WINDOW,
    };
    let mut accepted = true;
    for item in &loaded.items {
        accepted &= encoder.encode(item).is_ok();
        if let Question::Generation(generation) = &item.question
            && let Some(reference) = &generation.reference
        {
            reference.rule.judge(&generation.prompt, &reference.gold);
        }
    }
    accepted
}

/// Reads two files of results and compares them.
pub(super) fn results(desk: &Desk, bundle: &Bundle<'_>) -> bool {
    desk.lay(bundle, &["a.jsonl", "b.jsonl"]);
    let read = |name| Results::read(&desk.path(name));
    let (Ok(a), Ok(b)) = (read("a.jsonl"), read("b.jsonl")) else {
        return false;
    };
    assert!(
        compare(&a, &a).is_ok(),
        "a file can be compared with itself"
    );
    compare(&a, &b).is_ok()
}

/// Looks for an answer in a text.
pub(super) fn answers(_: &Desk, bundle: &Bundle<'_>) -> bool {
    let (text, gold) = (bundle.text("text"), bundle.text("gold"));
    let rules = [AnswerRule::Gsm8k, AnswerRule::MmluPro, AnswerRule::Math];
    let judged = rules.map(|rule| rule.judge(&text, &gold));
    judged.iter().flatten().any(|verdict| verdict.correct)
}
