//! Run checkpoints on disk: exactness, damage, what is kept, what is refused.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::stored::{CARRIED, MOMENTS, PARAMETERS, STATE, SUMS};
use super::writer::{CheckpointWriter, Snapshot};
use super::*;
use crate::data::fingerprint::Fingerprint;

fn checkpoint(step: u64) -> RunCheckpoint {
    // Values that lose bits in any shorter format or on the way through decimal digits.
    let values = vec![f32::MIN_POSITIVE / 4.0, -0.0, 1.0 + f32::EPSILON, f32::MAX];
    let tensors = NamedTensors::from([("a.weight".to_owned(), TensorData::new(values, [2, 2]))]);
    RunCheckpoint {
        state: RunState {
            version: RunState::VERSION,
            position: Position {
                step,
                recent_losses: [0.1f64.to_bits(), f64::MIN_POSITIVE.to_bits()].into(),
                ..Position::default()
            },
            versions: Versions::current(),
            identity: json!({"seed": 1}),
            config: String::new(),
        },
        parameters: tensors.clone(),
        moments: tensors.clone(),
        carried: tensors,
    }
}

/// Saves and rotates; returns where the checkpoint is.
fn save(run: &RunDirectory, checkpoint: &RunCheckpoint, keep: usize) -> PathBuf {
    run.save(checkpoint).unwrap();
    run.rotate(&checkpoint.state, keep).unwrap();
    run.checkpoint(checkpoint.step())
}

fn run() -> (tempfile::TempDir, RunDirectory) {
    let dir = tempfile::tempdir().unwrap();
    let run = RunDirectory::create(&dir.path().join("run")).unwrap();
    (dir, run)
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit() {
    let (_dir, run) = run();
    let saved = checkpoint(7);
    save(&run, &saved, 1);
    let loaded = run.load(None).unwrap();
    assert_eq!(loaded.state, saved.state);
    for (name, data) in &saved.parameters {
        assert_eq!(loaded.parameters[name].as_bytes(), data.as_bytes());
        assert_eq!(loaded.moments[name].as_bytes(), data.as_bytes());
        assert_eq!(loaded.carried[name].as_bytes(), data.as_bytes());
    }
}

#[test]
fn a_checkpoint_that_carries_nothing_has_no_file_for_it() {
    let (_dir, run) = run();
    let mut saved = checkpoint(7);
    saved.carried.clear();
    let path = save(&run, &saved, 1);
    assert!(!path.join(CARRIED).exists());
    assert!(run.load(None).unwrap().carried.is_empty());
}

#[test]
fn the_newest_are_kept() {
    let (_dir, run) = run();
    for step in [5, 10, 15] {
        save(&run, &checkpoint(step), 2);
    }
    assert_eq!(run.steps().unwrap(), [10, 15]);
    assert_eq!(run.load(None).unwrap().step(), 15);
    assert_eq!(run.load(Some(10)).unwrap().step(), 10);
    let error = run.load(Some(5)).unwrap_err().to_string();
    assert!(
        error.ends_with("no checkpoint of step 5; there are 10, 15"),
        "{error}"
    );
}

#[test]
fn every_flipped_bit_and_every_cut_of_every_file_is_found() {
    let (_dir, run) = run();
    let path = save(&run, &checkpoint(7), 1);
    for name in [PARAMETERS, MOMENTS, CARRIED, STATE, SUMS] {
        let file = path.join(name);
        let intact = fs::read(&file).unwrap();
        let check = |bytes: &[u8], damage: String| {
            fs::write(&file, bytes).unwrap();
            let error = run.load(None).expect_err(&damage);
            assert!(
                matches!(error, RunError::Damaged { .. }),
                "{damage}: {error}"
            );
        };
        for at in 0..intact.len() {
            let mut flipped = intact.clone();
            flipped[at] ^= 1 << (at % 8);
            check(&flipped, format!("{name}: byte {at} flipped"));
        }
        for length in [0, 1, intact.len() / 2, intact.len() - 1] {
            check(&intact[..length], format!("{name}: cut to {length}"));
        }
        fs::write(&file, &intact).unwrap();
    }
    run.load(None).unwrap();
}

#[test]
fn all_damaged_files_are_listed_at_once() {
    let (_dir, run) = run();
    let path = save(&run, &checkpoint(7), 1);
    fs::remove_file(path.join(MOMENTS)).unwrap();
    fs::write(path.join(STATE), b"{}").unwrap();
    let RunError::Damaged { problems, .. } = run.load(None).unwrap_err() else {
        panic!("not reported as damage")
    };
    assert_eq!(problems.len(), 2, "{problems:?}");
}

/// The sums name the files: a name that leads out of the checkpoint was read all the same, and
/// `/dev/zero` does not end.
#[test]
fn a_file_that_is_no_part_of_a_checkpoint_is_not_read() {
    let (_dir, run) = run();
    let path = save(&run, &checkpoint(7), 1);
    let lines = "0000000000000000 0 /dev/zero\n";
    let own = Fingerprint::of(lines.as_bytes());
    let sums = format!("{lines}{own:016x} {} {SUMS}\n", lines.len());
    fs::write(path.join(SUMS), sums).unwrap();
    let error = run.load(None).unwrap_err().to_string();
    assert!(
        error.contains("it lists \"/dev/zero\", which is no part of one"),
        "{error}"
    );
}

#[test]
fn a_used_directory_is_refused_and_an_unfinished_checkpoint_is_not_seen() {
    let (_dir, run) = run();
    fs::create_dir(run.checkpoints().join("step-00000009.part")).unwrap();
    fs::create_dir(run.checkpoints().join("aside-00000010")).unwrap();
    assert!(matches!(run.load(None), Err(RunError::NoCheckpoint { .. })));
    let error = RunDirectory::create(run.path()).unwrap_err();
    assert!(matches!(error, RunError::Exists { .. }), "{error}");
}

#[test]
fn differences_are_listed_by_path() {
    let there = json!({"model": {"d": 1, "n": 2}, "seed": 1});
    let here = json!({"model": {"d": 1, "n": 3}, "seed": 1, "recipe": "x"});
    assert_eq!(
        differences(&there, &here),
        [
            "model.n is 2 in the checkpoint and 3 here",
            "recipe is null in the checkpoint and \"x\" here"
        ]
    );
    assert!(differences(&there, &there).is_empty());
}

#[test]
fn the_best_checkpoint_is_kept_beside_the_newest() {
    let (_dir, run) = run();
    let mut best = None;
    for (step, loss) in [(1, 3.0), (2, 1.0), (3, 2.0), (4, 1.5)] {
        if best.is_none_or(|best: Best| loss < best.loss) {
            best = Some(Best { step, loss });
        }
        let mut checkpoint = checkpoint(step);
        checkpoint.state.position.best = best;
        save(&run, &checkpoint, 1);
    }
    assert_eq!(run.steps().unwrap(), [2, 4]);
}

#[test]
fn the_newest_intact_checkpoint_is_found_and_the_damaged_ones_are_named() {
    let (_dir, run) = run();
    for step in [1, 2, 3] {
        save(&run, &checkpoint(step), 3);
    }
    fs::write(run.checkpoint(3).join(MOMENTS), b"").unwrap();
    fs::remove_file(run.checkpoint(2).join(SUMS)).unwrap();
    let found = run.load_newest_intact().unwrap();
    assert_eq!(found.checkpoint.step(), 1);
    let damaged: Vec<_> = found.damaged.iter().map(ToString::to_string).collect();
    assert!(damaged[0].contains("step-00000003: damaged checkpoint: moments"));
    assert!(damaged[1].contains("step-00000002: damaged checkpoint: SUMS"));
    fs::write(run.checkpoint(1).join(STATE), b"{}").unwrap();
    let error = run.load_newest_intact().unwrap_err();
    assert!(matches!(error, RunError::AllDamaged { .. }), "{error}");
}

#[test]
fn recovery_clears_what_a_kill_left_and_puts_later_checkpoints_aside() {
    let (_dir, run) = run();
    for step in [1, 2, 3] {
        save(&run, &checkpoint(step), 3);
    }
    let part = |name: &str| run.checkpoints().join(name);
    fs::create_dir(part("step-00000004.part")).unwrap();
    fs::rename(run.checkpoint(2), part("step-00000002.old.part")).unwrap();
    let aside = run.recover(2).unwrap();
    assert_eq!(aside, [part("aside-00000003")]);
    assert_eq!(run.steps().unwrap(), [1, 2]);
    assert!(!part("step-00000004.part").exists());
    assert_eq!(run.load(None).unwrap().step(), 2);
}

#[test]
fn what_was_put_aside_stays_when_the_same_step_is_put_aside_again() {
    let (_dir, run) = run();
    for branch in [1, 2, 3] {
        for step in [1, 2] {
            save(&run, &checkpoint(step), 3);
        }
        let aside = run.recover(1).unwrap();
        let name = ["aside-00000002", "aside-00000002-2", "aside-00000002-3"][branch - 1];
        assert_eq!(aside, [run.checkpoints().join(name)]);
    }
    assert_eq!(run.steps().unwrap(), [1]);
    assert_eq!(fs::read_dir(run.checkpoints()).unwrap().count(), 4);
}

#[test]
fn the_newest_of_those_that_are_wanted_is_found_or_the_newest() {
    let (_dir, run) = run();
    for step in [1, 2, 3] {
        save(&run, &checkpoint(step), 3);
    }
    for (wanted, found) in [(&[1, 2][..], 2), (&[1, 3], 3), (&[], 3)] {
        let is_wanted = |state: &RunState| wanted.contains(&state.position.step);
        let newest = run.load_newest_intact_where(is_wanted).unwrap();
        assert_eq!(newest.checkpoint.step(), found, "{wanted:?}");
    }
}

#[test]
fn a_failed_save_is_reported_and_what_stands_is_untouched() {
    let (_dir, run) = run();
    save(&run, &checkpoint(1), 1);
    let mut writer = CheckpointWriter::new(run.clone(), 1);
    assert!(
        writer
            .begin(2, Instant::now(), Snapshot::Shared, || checkpoint(2))
            .is_none()
    );
    let written = writer.wait().unwrap();
    assert_eq!((written.step, written.saved.is_ok()), (2, true));
    assert_eq!(run.steps().unwrap(), [2], "rotated");
    // No folder can be made where a file is.
    let aside = run.checkpoints().join("step-00000003.part");
    fs::write(&aside, b"").unwrap();
    assert!(
        writer
            .begin(3, Instant::now(), Snapshot::Shared, || checkpoint(3))
            .is_none()
    );
    let failed = writer
        .begin(4, Instant::now(), Snapshot::Shared, || checkpoint(4))
        .unwrap();
    let error = failed.saved.unwrap_err().to_string();
    assert!(error.contains("step-00000003: cannot write"), "{error}");
    assert!(
        writer.wait().unwrap().saved.is_ok(),
        "the next one succeeds"
    );
    assert_eq!(run.steps().unwrap(), [4]);
    assert!(writer.wait().is_none() && writer.poll().is_none());
}

#[test]
fn nobody_waits_for_a_save_but_the_next_one() {
    let (_dir, run) = run();
    let mut writer = CheckpointWriter::new(run.clone(), 2);
    let (go_on, wait) = std::sync::mpsc::channel();
    let slow = move || {
        wait.recv().unwrap();
        checkpoint(1)
    };
    // This returns although the save cannot have begun: its tensors come later.
    assert!(
        writer
            .begin(1, Instant::now(), Snapshot::Shared, slow)
            .is_none()
    );
    assert!(writer.poll().is_none());
    assert_eq!(run.steps().unwrap(), [0; 0]);
    go_on.send(()).unwrap();
    let first = writer
        .begin(2, Instant::now(), Snapshot::Shared, || checkpoint(2))
        .unwrap();
    assert_eq!((first.step, first.saved.is_ok()), (1, true));
    drop(writer);
    assert_eq!(run.steps().unwrap(), [1, 2], "a writer that goes waits");
}

/// Kills: two copies of the state in memory at once.
#[test]
fn a_copy_is_taken_by_the_one_who_saves_and_after_the_save_before() {
    let (_dir, run) = run();
    let mut writer = CheckpointWriter::new(run.clone(), 2);
    let caller = thread::current().id();
    let here = move || thread::current().id() == caller;
    let shared = move || {
        assert!(!here());
        checkpoint(1)
    };
    assert!(
        writer
            .begin(1, Instant::now(), Snapshot::Shared, shared)
            .is_none()
    );
    let other = run.clone();
    let copied = move || {
        assert!(here());
        assert_eq!(other.steps().unwrap(), [1], "the save before is over");
        thread::sleep(Duration::from_millis(20));
        checkpoint(2)
    };
    let first = writer
        .begin(2, Instant::now(), Snapshot::Copied, copied)
        .unwrap();
    assert!(first.saved.is_ok(), "{first:?}");
    let second = writer.wait().unwrap();
    assert!(second.saved.is_ok() && second.waited >= 0.02, "{second:?}");
}

#[test]
fn the_version_of_burn_is_the_pinned_one() {
    let manifest = include_str!("../../../../Cargo.toml");
    let pin = format!("burn = {{ version = \"={}\"", Versions::current().burn);
    assert!(manifest.contains(&pin), "{pin}");
}
