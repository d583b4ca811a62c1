//! Two files of results, item by item.
//!
//! Both have answered the same questions, so what matters is where they disagree: the difference of
//! two means has a much smaller error than either mean.

use super::EvalError;
use super::outcome::{Measure, Outcome};
use super::results::{ItemLine, Results, TaskRun};
use super::stats::{Figure, paired};
use super::summary::figure;

/// How two results differ in one measure of one task.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The task.
    pub task: String,
    /// What is measured.
    pub measure: Measure,
    /// Its items.
    pub items: usize,
    /// The first file's figure.
    pub first: f64,
    /// The second file's figure.
    pub second: f64,
    /// The second less the first, over all items alike.
    pub difference: Figure,
    /// Where right and wrong are told apart.
    pub disagreement: Option<Disagreement>,
}

/// Items that one of two results has right and the other has not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Disagreement {
    /// Right in the first only.
    pub only_first: usize,
    /// Right in the second only.
    pub only_second: usize,
    /// McNemar's exact test.
    pub p_value: f64,
}

/// Compares two files of the same items.
///
/// # Errors
/// [`EvalError::Unpaired`] with the first difference in what was asked.
pub fn compare(a: &Results, b: &Results) -> Result<Vec<Difference>, EvalError> {
    let unpaired = |reason| EvalError::Unpaired {
        a: a.path.clone(),
        b: b.path.clone(),
        reason,
    };
    same_tasks(&a.run.tasks, &b.run.tasks).map_err(unpaired)?;
    for (a, b) in a.items.iter().zip(&b.items) {
        if (&a.task, &a.subject, &a.id) != (&b.task, &b.subject, &b.id) {
            return Err(unpaired(format!(
                "where the first has item {} of {}, the second has item {} of {}",
                a.id, a.subject, b.id, b.subject
            )));
        }
    }
    let tasks = a.run.tasks.iter();
    Ok(tasks.flat_map(|task| of_task(&task.task, a, b)).collect())
}

/// Says so if two files were made with batches of other sizes, which a recipe that takes one scale
/// for a whole batch tells apart.
pub fn other_batches(a: &Results, b: &Results) -> Option<String> {
    let (a, b) = (a.run.batch_tokens, b.run.batch_tokens);
    (a != b).then(|| {
        format!(
            "A was made with --batch-tokens {a}, B with {b}: where a recipe takes one scale for a \
             whole batch, that is in the difference too"
        )
    })
}

/// Checks that the same was asked.
fn same_tasks(a: &[TaskRun], b: &[TaskRun]) -> Result<(), String> {
    let names =
        |tasks: &[TaskRun]| -> Vec<String> { tasks.iter().map(|task| task.task.clone()).collect() };
    if names(a) != names(b) {
        let (a, b) = (names(a).join(", "), names(b).join(", "));
        return Err(format!("the first has the tasks {a}, the second {b}"));
    }
    for (a, b) in a.iter().zip(b) {
        let task = &a.task;
        let counts = [("shots", a.shots, b.shots), ("items", a.items, b.items)];
        if let Some((what, a, b)) = counts.iter().find(|(_, a, b)| a != b) {
            return Err(format!(
                "{task} has {a} {what} in the first and {b} in the second"
            ));
        }
        if a.questions != b.questions {
            let examples = match a.shots {
                0 => "",
                _ => " or the examples before them",
            };
            return Err(format!(
                "the questions of {task}{examples} were read from different files"
            ));
        }
    }
    Ok(())
}

fn of_task(task: &str, a: &Results, b: &Results) -> Vec<Difference> {
    let of_task = |results: &'_ Results| -> Vec<Outcome> {
        let items = results
            .items
            .iter()
            .filter(|item: &&ItemLine| item.task == task);
        items.map(|item| item.outcome.clone()).collect()
    };
    let (a, b) = (of_task(a), of_task(b));
    let (a, b): (Vec<&Outcome>, Vec<&Outcome>) = (a.iter().collect(), b.iter().collect());
    let measures = [
        Measure::Acc,
        Measure::AccNorm,
        Measure::AccBytes,
        Measure::ExactMatch,
        Measure::FlexibleExtract,
        Measure::BoxedMatch,
        Measure::Perplexity,
        Measure::BitsPerByte,
    ];
    let differences = measures.into_iter().filter_map(|measure| {
        let (first, second) = (figure(measure, &a)?.value, figure(measure, &b)?.value);
        let right = |outcome: &Outcome| outcome.correct.get(&measure).copied();
        let pairs = a.iter().zip(&b).map(|(a, b)| Some((right(a)?, right(b)?)));
        let pairs: Option<Vec<(bool, bool)>> = pairs.collect();
        let paired = pairs.map(|pairs| paired(&pairs));
        Some(Difference {
            task: task.to_owned(),
            measure,
            items: a.len(),
            first,
            second,
            difference: match &paired {
                Some(paired) => paired.difference,
                None => Figure {
                    value: second - first,
                    stderr: None,
                },
            },
            disagreement: paired.map(|paired| Disagreement {
                only_first: paired.only_first,
                only_second: paired.only_second,
                p_value: paired.p_value,
            }),
        })
    });
    differences.collect()
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::results;
    use super::*;

    #[test]
    fn equal_items_are_compared_one_by_one() {
        let a = results(
            "a",
            "t",
            &[("1", true), ("2", false), ("3", false), ("4", true)],
        );
        let b = results(
            "b",
            "t",
            &[("1", true), ("2", true), ("3", true), ("4", false)],
        );
        let differences = compare(&a, &b).unwrap();
        assert_eq!(differences.len(), 2);
        let acc = &differences[0];
        assert_eq!((acc.measure, acc.items), (Measure::Acc, 4));
        assert_eq!(
            (acc.first, acc.second, acc.difference.value),
            (0.5, 0.75, 0.25)
        );
        let expected = Disagreement {
            only_first: 1,
            only_second: 2,
            p_value: 1.0,
        };
        assert_eq!(acc.disagreement, Some(expected));
        // Mean log-likelihoods are -1.5 and -1.25.
        let perplexity = &differences[1];
        assert_eq!(perplexity.measure, Measure::Perplexity);
        let expected = 1.25f64.exp() - 1.5f64.exp();
        assert!((perplexity.difference.value - expected).abs() < 1e-12);
        assert_eq!(perplexity.disagreement, None);
    }

    #[test]
    fn what_was_not_asked_alike_is_not_compared() {
        let a = results("a", "t", &[("1", true), ("2", false)]);
        let refused = |b: &Results| {
            let error = compare(&a, b).unwrap_err().to_string();
            error
                .strip_prefix("a and b cannot be compared: ")
                .unwrap()
                .to_owned()
        };
        let other = results("b", "u", &[("1", true), ("2", false)]);
        assert_eq!(refused(&other), "the first has the tasks t, the second u");
        let fewer = results("b", "t", &[("1", true)]);
        assert_eq!(
            refused(&fewer),
            "t has 2 items in the first and 1 in the second"
        );
        let swapped = results("b", "t", &[("2", true), ("1", false)]);
        assert_eq!(
            refused(&swapped),
            "where the first has item 1 of t, the second has item 2 of t"
        );
        let mut shots = a.clone();
        shots.path = "b".into();
        shots.run.tasks[0].shots = 5;
        assert_eq!(
            refused(&shots),
            "t has 0 shots in the first and 5 in the second"
        );
        shots.run.tasks[0].shots = 0;
        shots.run.tasks[0].questions = "01".to_owned();
        assert_eq!(
            refused(&shots),
            "the questions of t were read from different files"
        );
        let mut asked = a.clone();
        (asked.run.tasks[0].shots, shots.run.tasks[0].shots) = (5, 5);
        let error = compare(&asked, &shots).unwrap_err().to_string();
        let expected = "the questions of t or the examples before them were read from different";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn batches_of_another_size_are_said_and_refuse_nothing() {
        let a = results("a", "t", &[("1", true)]);
        let mut b = a.clone();
        assert_eq!(other_batches(&a, &b), None);
        b.run.batch_tokens = 1024;
        let note = other_batches(&a, &b).unwrap();
        assert!(
            note.starts_with("A was made with --batch-tokens 64, B with 1024"),
            "{note}"
        );
        assert!(compare(&a, &b).is_ok());
    }
}
