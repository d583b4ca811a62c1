//! In which batches rows go through a model, so that nothing is computed twice that costs much.
//!
//! 1. Rows that read the same ids become one input: answers of one token to one question differ in
//!    what is scored alone.
//! 2. Inputs, sorted by their ids, that share a beginning follow each other. Where sharing saves a
//!    batch or more, that beginning goes through the model once, and the rest of each input follows
//!    it from the cache: the examples before every question of a subject.
//! 3. What is left of each input is batched by length, longest first, padded on the right. The
//!    model is causal, so padding behind a row changes nothing in it.

use std::ops::Range;

use super::encode::Row;

/// Shortest beginning worth a cache, in ids.
const SHORTEST: usize = 64;

/// Positions in a cache for which one position fewer fits a batch: they are read, not computed.
const CACHED_PER_POSITION: usize = 16;

/// An input, and the rows that read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input<'a> {
    /// What the model reads.
    pub ids: &'a [u32],
    /// Indices of the rows.
    pub rows: Vec<usize>,
    /// First position whose prediction is scored in any row.
    pub first: usize,
}

/// Inputs with a common beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Length of the beginning; 0 if they share none worth it.
    pub prefix: usize,
    /// Indices of the inputs, one list per batch, longest first.
    pub batches: Vec<Vec<usize>>,
}

/// Step 1, sorted by ids.
pub fn inputs<'a>(rows: &[&'a Row]) -> Vec<Input<'a>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|&row| rows[row].input());
    let mut inputs: Vec<Input<'a>> = Vec::new();
    for row in order {
        let (ids, first) = (rows[row].input(), rows[row].first());
        match inputs.last_mut() {
            Some(last) if last.ids == ids => {
                last.rows.push(row);
                last.first = last.first.min(first);
            }
            Some(_) | None => inputs.push(Input {
                ids,
                rows: vec![row],
                first,
            }),
        }
    }
    inputs
}

/// Steps 2 and 3, for batches of at most `batch_tokens` positions (or of one input).
pub fn groups(inputs: &[Input<'_>], batch_tokens: usize) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut alone = Vec::new();
    let mut start = 0;
    while start < inputs.len() {
        let (range, prefix) = run(inputs, start);
        start = range.end;
        if prefix * (range.len() - 1) >= batch_tokens.max(SHORTEST) {
            groups.push(Group {
                prefix,
                batches: batches(inputs, range.collect(), prefix, batch_tokens),
            });
        } else {
            alone.extend(range);
        }
    }
    if !alone.is_empty() {
        groups.push(Group {
            prefix: 0,
            batches: batches(inputs, alone, 0, batch_tokens),
        });
    }
    groups
}

/// The inputs from `start` on that share a beginning, and its length: one more is taken as long as
/// that saves more than it costs the others.
fn run(inputs: &[Input<'_>], start: usize) -> (Range<usize>, usize) {
    // The prediction of the first scored id has to be computed for each input.
    let mut prefix = inputs[start].first;
    let mut end = start + 1;
    while let Some(next) = inputs.get(end) {
        let ids = inputs[start].ids[..prefix].iter().zip(next.ids);
        let common = ids.take_while(|(a, b)| a == b).count().min(next.first);
        let count = end - start;
        if common < SHORTEST || common * count < prefix * (count - 1) {
            break;
        }
        prefix = common;
        end += 1;
    }
    (start..end, prefix)
}

/// Step 3.
fn batches(
    inputs: &[Input<'_>],
    mut members: Vec<usize>,
    prefix: usize,
    batch_tokens: usize,
) -> Vec<Vec<usize>> {
    // Stable, so that inputs of one length stay in the order of their ids.
    members.sort_by_key(|&input| std::cmp::Reverse(inputs[input].ids.len()));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for input in members {
        let fits = batches.last().is_some_and(|batch| {
            let longest = inputs[batch[0]].ids.len() - prefix + prefix / CACHED_PER_POSITION;
            (batch.len() + 1) * longest <= batch_tokens
        });
        match batches.last_mut() {
            Some(batch) if fits => batch.push(input),
            Some(_) | None => batches.push(vec![input]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::super::encode::{Encoded, Encoder};
    use super::super::question::{Choice, Item, Question};
    use super::*;
    use crate::data::Tokenizer;

    /// The rows of questions with these answers.
    fn rows(questions: &[(&str, &[&str])]) -> Vec<Row> {
        let encoder = Encoder {
            tokenizer: &Tokenizer::Bytes,
            window: 1000,
        };
        let rows = questions.iter().map(|(context, answers)| {
            let item = Item {
                subject: String::new(),
                id: String::new(),
                question: Question::Choice(Choice::after(context, answers, 0)),
            };
            match encoder.encode(&item).unwrap() {
                Encoded::Rows(rows) => rows,
                Encoded::Prompt(_) => unreachable!(),
            }
        });
        rows.collect::<Vec<_>>().concat()
    }

    #[test]
    fn answers_of_one_last_token_are_one_input() {
        let rows = rows(&[("Question?", &["A", "B", "long"]), ("Another?", &["A"])]);
        let rows: Vec<&Row> = rows.iter().collect();
        let inputs = inputs(&rows);
        // Sorted by ids: "Another? ", "Question? ", "Question? lon".
        let found: Vec<_> = inputs.iter().map(|input| input.rows.clone()).collect();
        assert_eq!(found, [vec![3], vec![0, 1], vec![2]]);
        // Of " A" both bytes are scored, the first from the last byte of the question.
        assert_eq!((inputs[1].ids.len(), inputs[1].first), (10, 8));
    }

    #[test]
    fn a_beginning_is_shared_where_that_saves_a_batch() {
        let examples = "e".repeat(90);
        let questions: Vec<String> = (0..5).map(|i| format!("{examples}{i}?")).collect();
        let mut asked: Vec<(&str, &[&str])> = vec![("apart", &["yes"]), ("zebra", &["no"])];
        asked.extend(
            questions
                .iter()
                .map(|question| (question.as_str(), &["A"][..])),
        );
        let rows = rows(&asked);
        let rows: Vec<&Row> = rows.iter().collect();
        let inputs = inputs(&rows);
        let shared = groups(&inputs, 360);
        assert_eq!(shared.len(), 2);
        assert_eq!(shared[0].prefix, 90);
        assert_eq!(shared[0].batches.concat(), [1, 2, 3, 4, 5]);
        assert_eq!(
            (shared[1].prefix, shared[1].batches.concat()),
            (0, vec![0, 6])
        );
        // Four times 90 ids saved are less than a batch of 361.
        let apart = groups(&inputs, 361);
        assert_eq!(apart.len(), 1);
        assert_eq!(apart[0].batches.concat().len(), 7);
    }

    #[test]
    fn what_is_scored_is_never_in_the_shared_beginning() {
        let answer = "a".repeat(200);
        let answers: Vec<String> = (0..9).map(|i| format!("{answer}{i}x")).collect();
        let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
        let context = "c".repeat(70);
        let rows = rows(&[(&context, &answers)]);
        let rows: Vec<&Row> = rows.iter().collect();
        let groups = groups(&inputs(&rows), 100);
        assert_eq!(groups[0].prefix, 69);
    }

    #[test]
    fn batches_hold_as_much_as_they_may_and_the_longest_comes_first() {
        let texts: Vec<String> = (1..=6).map(|n| "x".repeat(n * 10)).collect();
        let asked: Vec<(&str, &[&str])> = texts
            .iter()
            .map(|text| (text.as_str(), &["A"][..]))
            .collect();
        let rows = rows(&asked);
        let rows: Vec<&Row> = rows.iter().collect();
        let inputs = inputs(&rows);
        let groups = groups(&inputs, 130);
        let lengths: Vec<Vec<usize>> = groups[0]
            .batches
            .iter()
            .map(|batch| batch.iter().map(|&input| inputs[input].ids.len()).collect())
            .collect();
        // 61 + 51 padded to 61, then three of 41 at most, then what is left.
        assert_eq!(lengths, [vec![61, 51], vec![41, 31, 21], vec![11]]);
    }
}
