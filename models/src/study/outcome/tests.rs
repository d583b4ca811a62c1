//! Pairs, spreads, and what is not finished, on runs made by hand.

use super::*;
use crate::study::record::{Loss, StepPoint};

const STUDY: &str = r#"
    name = "s"
    base = "default.toml"
    seeds = [1, 2, 3]
    reference = "bf16"
    steps = 4

    [[arm]]
    name = "bf16"
    recipe = "high_precision"

    [[arm]]
    name = "fp4"
    recipe = "nvidia"
"#;

fn study() -> Study {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/study.toml");
    Study::from_toml(STUDY, &path).unwrap()
}

/// A run of four steps that ends at this validation loss.
fn finished(loss: f64) -> RunRecord {
    let mut record = open(loss);
    record.last = Some(FinalLine {
        step: 4,
        train_loss: loss,
        validation_loss: loss,
        validation_bits_per_byte: loss / std::f64::consts::LN_2,
        high_precision_loss: loss - 0.01,
        high_precision_bits_per_byte: 1.0,
        order0_bits_per_byte: 5.0,
        order1_bits_per_byte: 4.0,
        tokens_per_second: 10.0,
        seconds: 1.0,
        waited_seconds: None,
        peak_memory_bytes: Some(1 << 20),
    });
    record
}

fn open(loss: f64) -> RunRecord {
    let point = |step: u64| StepPoint {
        step,
        loss,
        learning_rate: 1.0,
        grad_norm: 1.0,
        tokens: step,
        tokens_per_second: 10.0,
    };
    let validation = Loss {
        nats: loss,
        bits_per_byte: loss,
    };
    RunRecord {
        steps: (1..=4).map(point).collect(),
        validations: BTreeMap::from([(4, validation)]),
        ..RunRecord::default()
    }
}

fn records(runs: Vec<(&str, u64, RunRecord)>) -> Records {
    let runs = runs.into_iter();
    runs.map(|(arm, seed, record)| ((arm.to_owned(), seed), record))
        .collect()
}

#[test]
fn gaps_are_paired_by_seed_so_what_a_seed_does_to_both_runs_is_no_noise() {
    let outcome = Outcome::of(
        &study(),
        &records(vec![
            ("bf16", 1, finished(1.0)),
            ("bf16", 2, finished(2.0)),
            ("bf16", 3, finished(4.0)),
            ("fp4", 1, finished(1.1)),
            ("fp4", 2, finished(2.1)),
            ("fp4", 3, finished(4.1)),
        ]),
    );
    let [reference, arm] = &outcome.arms[..] else {
        panic!("{outcome:?}")
    };
    let gap = arm.gap_nats.unwrap();
    assert!((gap.mean - 0.1).abs() < 1e-9 && gap.seeds == 3);
    assert!(gap.spread.unwrap().resolution < 1e-9, "{gap:?}");
    // 10, 5 and 2.5 percent.
    assert!((arm.gap_percent.unwrap().mean - 17.5 / 3.0).abs() < 1e-9);
    assert!(arm.loss.unwrap().spread.unwrap().deviation > 1.0);
    assert_eq!(reference.gap_nats.unwrap().mean, 0.0);
    assert!((arm.training_gap_percent.unwrap().mean - 17.5 / 3.0).abs() < 1e-9);
    assert_eq!(arm.peak_memory_bytes, Some(1 << 20));
    let [curve] = &outcome.gaps[..] else {
        panic!("{:?}", outcome.gaps)
    };
    assert_eq!((curve.arm.as_str(), curve.training.len()), ("fp4", 4));
    assert!((curve.validation[0].high - 10.0).abs() < 1e-9);
    assert!((curve.validation[0].low - 2.5).abs() < 1e-9);
    assert!(outcome.notes().iter().any(|note| note.contains("3 seeds")));
}

#[test]
fn the_spread_of_all_arms_says_what_tells_two_apart() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/study.toml");
    let third = format!("{STUDY}\n[[arm]]\nname = \"fp8\"\nrecipe = \"fp8\"\n");
    let study = Study::from_toml(&third, &path).unwrap();
    let mut runs = vec![("bf16", 1, finished(1.0)), ("bf16", 2, finished(1.0))];
    runs.extend([("fp4", 1, finished(1.01)), ("fp4", 2, finished(1.03))]);
    let of_one = Outcome::of(&study, &records(runs.clone()));
    assert!(!of_one.notes().join(" ").contains("degrees of freedom"));
    runs.extend([("fp8", 1, finished(1.02)), ("fp8", 2, finished(1.02))]);
    // Squares 2 and 0 over two degrees of freedom; t(2) = 4.303.
    let notes = Outcome::of(&study, &records(runs)).notes().join(" ");
    let expected = "Over 2 arms with several seeds a gap deviates by 1.00 % (1.00 % in training; 2 \
                    degrees of freedom). By that, two arms differ beyond noise if they are 4.30 % \
                    (4.30 % in training) apart with 2 seeds each, 6.09 % (6.09 % in training) with \
                    one.";
    assert!(notes.contains(expected), "{notes}");
}

#[test]
fn a_gap_needs_the_reference_of_its_own_seed() {
    let runs = vec![("bf16", 1, finished(1.0)), ("fp4", 2, finished(2.1))];
    let outcome = Outcome::of(&study(), &records(runs));
    assert_eq!(outcome.arms[1].gap_nats, None);
    assert_eq!(outcome.arms[1].loss.unwrap().seeds, 1);
    assert_eq!(outcome.gaps, []);
    let notes = outcome.notes().join(" ");
    assert!(notes.contains("4 of 6 runs are not finished"), "{notes}");
}

#[test]
fn one_seed_says_that_nothing_tells_gaps_from_noise() {
    let runs = vec![("bf16", 1, finished(1.0)), ("fp4", 1, finished(1.1))];
    let outcome = Outcome::of(&study(), &records(runs));
    assert_eq!(outcome.arms[1].gap_nats.unwrap().spread, None);
    assert!(outcome.notes().join(" ").contains("One seed"));
}

#[test]
fn runs_that_are_not_finished_or_gave_up_are_in_no_mean() {
    let mut failed = open(9.0);
    failed.stopped = Some("NaN in x".to_owned());
    let outcome = Outcome::of(
        &study(),
        &records(vec![
            ("bf16", 1, finished(1.0)),
            ("bf16", 2, finished(2.0)),
            ("fp4", 1, open(5.0)),
            ("fp4", 2, failed),
        ]),
    );
    let arm = &outcome.arms[1];
    assert_eq!((arm.loss, arm.gap_nats, arm.diverged), (None, None, 1));
    let states: Vec<_> = arm.runs.iter().map(|run| run.state.clone()).collect();
    let failed = State::Failed("NaN in x".to_owned());
    assert_eq!(states, [State::Open, failed, State::Missing]);
    assert!(outcome.notes().join(" ").contains("gave up"));
}

#[test]
fn a_run_in_the_place_of_another_one_is_named_with_every_difference() {
    let study = study();
    let dir = tempfile::tempdir().unwrap();
    let run = study.runs().remove(1);
    let folder = run.folder(dir.path());
    fs::create_dir_all(&folder).unwrap();
    check_run(&folder, &run).unwrap();
    let mut other = run.config.clone();
    (other.steps, other.batch.accumulate) = (5, 2.try_into().unwrap());
    fs::write(folder.join("config.toml"), toml::to_string(&other).unwrap()).unwrap();
    let error = check_run(&folder, &run).unwrap_err().to_string();
    assert!(error.contains("fp4/seed-1: this run is not"), "{error}");
    assert!(
        error.contains("batch.accumulate is 2 there and 1 here"),
        "{error}"
    );
    assert!(error.contains("steps is 5 there and 4 here"), "{error}");
}
