//! Run checkpoints on disk: exactness, damage, what is kept, what is refused.

use serde_json::json;

use super::*;

fn checkpoint(step: u64) -> RunCheckpoint {
    // Values that lose bits in any shorter format or on the way through decimal digits.
    let values = vec![f32::MIN_POSITIVE / 4.0, -0.0, 1.0 + f32::EPSILON, f32::MAX];
    let tensors = NamedTensors::from([("a.weight".to_owned(), TensorData::new(values, [2, 2]))]);
    RunCheckpoint {
        state: RunState {
            version: RunState::VERSION,
            step,
            identity: json!({"seed": 1}),
            config: json!({}),
        },
        parameters: tensors.clone(),
        moments: tensors,
    }
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
    run.save(&saved, 1).unwrap();
    let loaded = run.load(None).unwrap();
    assert_eq!(loaded.state, saved.state);
    for (name, data) in &saved.parameters {
        assert_eq!(loaded.parameters[name].as_bytes(), data.as_bytes());
        assert_eq!(loaded.moments[name].as_bytes(), data.as_bytes());
    }
}

#[test]
fn the_newest_are_kept() {
    let (_dir, run) = run();
    for step in [5, 10, 15] {
        run.save(&checkpoint(step), 2).unwrap();
    }
    assert_eq!(run.steps().unwrap(), [10, 15]);
    assert_eq!(run.load(None).unwrap().state.step, 15);
    assert_eq!(run.load(Some(10)).unwrap().state.step, 10);
    let error = run.load(Some(5)).unwrap_err().to_string();
    assert!(
        error.ends_with("no checkpoint of step 5; there are 10, 15"),
        "{error}"
    );
}

#[test]
fn every_flipped_bit_and_every_cut_of_every_file_is_found() {
    let (_dir, run) = run();
    let path = run.save(&checkpoint(7), 1).unwrap();
    for name in [PARAMETERS, MOMENTS, STATE, SUMS] {
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
    let path = run.save(&checkpoint(7), 1).unwrap();
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
    let path = run.save(&checkpoint(7), 1).unwrap();
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
