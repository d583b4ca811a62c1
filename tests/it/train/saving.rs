//! What a save that fails leaves of the others.

use std::path::PathBuf;

use burn::backend::{Autodiff, NdArray};
use burn_nvfp4_models::train::log::{self, Forward};

use super::*;
use crate::device::exclusive;

/// Puts a file where the checkpoint of a step is to be written, before that step.
#[derive(Debug)]
struct InTheWay {
    step: u64,
    file: PathBuf,
}

impl Numerics for InTheWay {
    fn begin_step(&self, step: u64, _total: u64) {
        if step + 1 == self.step {
            std::fs::write(&self.file, b"").unwrap();
        }
    }

    fn take_non_finite(&self) -> Option<String> {
        None
    }

    fn in_high_precision(&self, forward: &mut dyn FnMut()) {
        forward();
    }
}

/// A text whose end has letters that occur nowhere before: who learns the text unlearns them.
fn tokens_that_end_otherwise(dir: &Path) -> Arc<TokenFile> {
    let path = dir.join("text.txt");
    std::fs::write(&path, "abc".repeat(3200) + &"QWE".repeat(160)).unwrap();
    let corpus = Corpus::at(&path).unwrap();
    Arc::new(TokenFile::prepare(&corpus, &Tokenizer::Bytes, dir).unwrap())
}

/// Kills: a checkpoint that was never written is the best one, and the best of those that were goes.
#[test]
fn the_best_checkpoint_is_one_that_could_be_saved() {
    let _device = exclusive();
    let place = Place::of(tokens_that_end_otherwise);
    for snapshot in [Snapshot::Shared, Snapshot::Copied] {
        let run = Run {
            total: 16,
            keep: 1,
            snapshot,
            ..place.run(&format!("{snapshot:?}"), shape(2, 32, 1))
        };
        let folder = run.directory.checkpoints();
        let in_the_way = InTheWay {
            step: 4,
            file: folder.join("step-00000004.part"),
        };
        let stop = Interrupter::new();
        run.go::<Autodiff<NdArray>>(Box::new(in_the_way), None, &stop)
            .unwrap();
        let lines = log::read(&run.directory.log()).unwrap();
        let losses: Vec<_> = lines
            .iter()
            .filter_map(|line| match line {
                LogLine::Validation {
                    forward: Forward::Recipe,
                    loss,
                    ..
                } => Some(*loss),
                _ => None,
            })
            .collect();
        assert!(losses.is_sorted(), "the first is the lowest: {losses:?}");
        let failed = |line: &LogLine| matches!(line, LogLine::SaveFailed { step: 4, .. });
        assert!(lines.iter().any(failed));
        assert_eq!(run.directory.steps().unwrap(), [8, 16]);
    }
}
