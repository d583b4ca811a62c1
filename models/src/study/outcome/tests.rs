//! Pairs, spreads, and what is not finished, on runs made by hand.

use serde_json::Value;

use super::*;
use crate::study::record::{Loss, StepPoint};
use crate::train::log::{LogLine, RewindLine, RunLog};

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

/// A run that ended far above its own best.
fn diverged() -> RunRecord {
    let mut record = finished(9.0);
    let best = Loss {
        nats: 1.0,
        bits_per_byte: 1.0,
    };
    record.validations.insert(2, best);
    record
}

/// A run that went back, so that its last training losses are of other batches.
fn rewound(loss: f64) -> RunRecord {
    let mut record = finished(loss);
    record.rewinds.push(RewindLine {
        from: 3,
        to: 1,
        loss: 9.0,
        limit: 3.0,
        rewinds: 1,
    });
    record
}

/// The notes on four arms, in one line; the reference, bf16, ends at 1 unless `runs` says else.
fn notes_of_four(runs: Vec<(&str, u64, RunRecord)>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/study.toml");
    let arm = |name: &str| format!("\n[[arm]]\nname = \"{name}\"\nrecipe = \"{name}\"\n");
    let four = format!("{STUDY}{}{}", arm("fp8"), arm("mxfp8"));
    let study = Study::from_toml(&four, &path).unwrap();
    let mut all: Vec<_> = [1, 2, 3].map(|seed| ("bf16", seed, finished(1.0))).into();
    // What comes later replaces what was there.
    all.extend(runs);
    Outcome::of(&study, &records(all)).notes().join(" ")
}

/// One run at NaN, or far above its own best, decided what all arms resolve.
#[test]
fn a_run_that_diverged_says_nothing_about_noise() {
    let sound = vec![
        ("fp4", 1, finished(1.01)),
        ("fp4", 2, finished(1.03)),
        ("fp8", 1, finished(1.02)),
        ("fp8", 2, finished(1.02)),
    ];
    let expected = "Over 2 arms with several seeds and no diverged run a gap deviates by 1.00 % \
                    (1.00 % in training; 2 degrees of freedom). By that, two arms differ beyond \
                    noise if they are 4.30 % (4.30 % in training) apart with 2 seeds each";
    for bad in [diverged(), finished(f64::NAN)] {
        let mut runs = sound.clone();
        runs.extend([("mxfp8", 1, finished(1.02)), ("mxfp8", 2, bad.clone())]);
        let notes = notes_of_four(runs);
        assert!(notes.contains(expected), "{notes}");
        let mut runs = sound.clone();
        runs.push(("bf16", 3, bad));
        let notes = notes_of_four(runs);
        assert!(!notes.contains("degrees of freedom"), "{notes}");
    }
    let notes = notes_of_four(sound);
    assert!(notes.contains("Over 2 arms with several seeds a gap deviates"));
}

/// Without a training gap on several seeds of two arms the whole note was left out, and the degrees
/// of freedom were those of the validation for both.
#[test]
fn training_gaps_that_fewer_runs_have_are_said_with_their_own_freedom() {
    let with = |fp8: [RunRecord; 3]| {
        let fp4 = [1.0, 1.01, 1.02].map(finished);
        let fp4 = (1..).zip(fp4).map(|(seed, run)| ("fp4", seed, run));
        let fp8 = (1..).zip(fp8).map(|(seed, run)| ("fp8", seed, run));
        notes_of_four(fp4.chain(fp8).collect())
    };
    let notes = with([finished(1.0), finished(1.01), rewound(1.02)]);
    // Squares of 1, 0 and 1 percent twice, over 4; in training of 1, 0, 1 and two halves, over 3.
    let expected = "a gap deviates by 1.00 % (4 degrees of freedom) and by 0.91 % in training (3 \
                    degrees of freedom). By that";
    assert!(notes.contains(expected), "{notes}");
    let notes = with([finished(1.0), rewound(1.01), rewound(1.02)]);
    // t(4) = 2.776.
    let expected = "a gap deviates by 1.00 % (4 degrees of freedom). By that, two arms differ \
                    beyond noise if they are 2.27 % apart with 3 seeds each, 3.93 % with one.";
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

/// Writes the first line of the log of a run, and nothing else of it.
fn begin(run: &PlannedRun, folder: &Path, model: &Value, data: &Value) {
    let folder = run.folder(folder);
    fs::create_dir_all(&folder).unwrap();
    let start = LogLine::Start {
        config: Value::Null,
        model: model.clone(),
        parameters: 30,
        data: data.clone(),
        ranks: 1,
    };
    RunLog::create(&RunDirectory::at(&folder).log(), &start).unwrap();
}

/// Parameters alone were compared, and a model file that was changed may have as many.
#[test]
fn runs_of_other_models_are_not_mixed_and_every_field_is_named() {
    let study = study();
    let runs = study.runs();
    let dir = tempfile::tempdir().unwrap();
    let data = json!({"fingerprint": "aa"});
    // A number of many digits, which reading may change in the last bit.
    let init_std = 0.02 / 7.0_f64.sqrt();
    let model = json!({"n_groups": 8, "pattern": "M-", "init_std": init_std});
    for run in &runs[..3] {
        begin(run, dir.path(), &model, &data);
    }
    assert_eq!(read_runs(&study, dir.path()).unwrap().len(), 3);
    let mut other = model.clone();
    (other["n_groups"], other["norm_eps"]) = (json!(4), json!(1e-5));
    begin(&runs[3], dir.path(), &other, &data);
    let error = read_runs(&study, dir.path()).unwrap_err().to_string();
    let there = runs[0].folder(dir.path());
    let there = there.display();
    for words in [
        format!("{}: this run", runs[3].folder(dir.path()).display()),
        format!("model.n_groups is 8 in {there} and 4 here"),
        format!("model.norm_eps is null in {there} and "),
    ] {
        assert!(error.contains(&words), "{words:?} expected in {error}");
    }
    assert!(!error.contains("init_std"), "{error}");
}

/// The tokens of a validation folder were in no fingerprint: runs validated on others were paired.
#[test]
fn runs_validated_on_other_tokens_are_not_mixed_where_their_logs_say_on_which() {
    let study = study();
    let runs = study.runs();
    let dir = tempfile::tempdir().unwrap();
    let model = json!({"d_model": 8});
    let validated = |on: &str| json!({"fingerprint": "aa", "validation_fingerprint": on});
    // A log of before, and one of a run without such a folder.
    begin(&runs[0], dir.path(), &model, &json!({"fingerprint": "aa"}));
    let none = json!({"fingerprint": "aa", "validation_fingerprint": null});
    begin(&runs[1], dir.path(), &model, &none);
    begin(&runs[2], dir.path(), &model, &validated("bb"));
    begin(&runs[3], dir.path(), &model, &validated("bb"));
    assert_eq!(read_runs(&study, dir.path()).unwrap().len(), 4);
    begin(&runs[3], dir.path(), &model, &validated("cc"));
    let error = read_runs(&study, dir.path()).unwrap_err();
    assert!(matches!(error, StudyError::OtherData { .. }), "{error}");
    let error = error.to_string();
    let [here, there] = [&runs[3], &runs[2]].map(|run| run.folder(dir.path()));
    let (here, there) = (here.display(), there.display());
    let expected = format!("{here}: validation tokens cc, but {there} has validation tokens bb");
    assert!(error.starts_with(&expected), "{error}");
}
