//! Study files, right and wrong.

use std::path::Path;

use super::*;
use crate::train::config::{BackendName, ModelSource};

/// A study beside the configurations of the repository.
fn parse(text: &str) -> Result<Study, StudyError> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/study.toml");
    Study::from_toml(text, &path)
}

const STUDY: &str = r#"
    name = "s"
    base = "default.toml"
    seeds = [3, 4]
    reference = "plain"
    steps = 77

    [schedule]
    peak = 1e-3

    [data]
    path = "text.txt"

    [[arm]]
    name = "plain"
    recipe = "high_precision"

    [[arm]]
    name = "late"
    recipe = "nvidia"
    policy = "uniform"
    high_precision_forward_from = 0.8
    warm_up = { recipe = "fp8", until = 0.25 }
"#;

#[test]
fn every_study_in_the_repository_makes_runs_that_differ_in_precision_alone() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("study-") {
            continue;
        }
        let study = Study::read(&path).unwrap();
        let first = &study.arms[0].config;
        for arm in &study.arms {
            let same = TrainConfig {
                name: first.name.clone(),
                precision: first.precision.clone(),
                ..arm.config.clone()
            };
            assert_eq!(same, *first, "{name}, {}", arm.name);
        }
        count += 1;
    }
    assert!(count > 0);
}

#[test]
fn an_arm_is_the_base_with_the_study_over_it_and_its_own_precision() {
    let study = parse(STUDY).unwrap();
    let [plain, late] = &study.arms[..] else {
        panic!("{study:?}")
    };
    for config in [&plain.config, &late.config] {
        assert_eq!((config.steps, config.schedule.peak), (77, 1e-3));
        // From the base: a section is put over key by key.
        assert_eq!((config.schedule.warmup, config.schedule.last), (0.05, 4e-5));
        assert!(
            config
                .data
                .path
                .as_ref()
                .unwrap()
                .ends_with("configs/text.txt")
        );
        assert_eq!(config.checkpoint.keep, 1);
        assert_eq!(config.checkpoint.every, 100);
    }
    assert_eq!(plain.config.precision.policy, "paper");
    assert_eq!(late.config.precision.policy, "uniform");
    assert_eq!(late.config.precision.high_precision_forward_from, Some(0.8));
    assert!(late.config.precision.warm_up.is_some());
    let runs = study.runs();
    let names: Vec<_> = runs.iter().map(|run| run.config.name.as_str()).collect();
    let expected = [
        "s-plain-seed-3",
        "s-late-seed-3",
        "s-plain-seed-4",
        "s-late-seed-4",
    ];
    assert_eq!(names, expected);
    assert_eq!(runs[3].config.seed, 4);
    assert_eq!(
        runs[3].folder(Path::new("out")),
        Path::new("out/late/seed-4")
    );
}

#[test]
fn a_model_and_a_text_replace_those_of_the_base() {
    let inline = STUDY.replace("[schedule]", "[model]\nconfig = \"m.json\"\n[schedule]");
    let study = parse(&inline).unwrap();
    let ModelSource::Config(path) = &study.arms[0].config.model else {
        panic!("{study:?}")
    };
    assert!(path.ends_with("configs/m.json"), "{}", path.display());
}

#[test]
fn a_resolved_study_is_read_back() {
    let pictured = STUDY.replace("steps = 77", "pictured = [\"late\"]");
    let study = parse(&pictured).unwrap();
    assert_eq!(study.pictured, ["late"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("plan.toml");
    fs::write(&path, study.to_toml().unwrap()).unwrap();
    assert_eq!(Study::from_resolved(&path).unwrap(), study);
}

#[test]
fn what_is_no_study_is_one_line_that_names_it() {
    let arm = "[[arm]]\nname = \"plain\"\nrecipe = \"nvidia\"\n";
    let cases = [
        (STUDY.replace("seeds = [3, 4]", "seeds = ["), "line 5"),
        (STUDY.replace("seeds = [3, 4]", ""), "missing field `seeds`"),
        (STUDY.replace("[3, 4]", "[]"), "seeds is empty"),
        (STUDY.replace("[3, 4]", "[3, 3]"), "3 stands there twice"),
        (
            STUDY.replace("\"plain\"\n    steps", "\"x\"\n    steps"),
            "plain, late",
        ),
        (
            STUDY.replace("steps = 77", "pictured = [\"late\", \"y\"]"),
            "pictured is \"y\", it must be one of the arms: plain, late",
        ),
        (
            STUDY.replace("steps = 77", "stepps = 77"),
            "unknown field `stepps`",
        ),
        (
            STUDY.replace("steps = 77", "steps = 0"),
            "arm \"plain\": steps is 0",
        ),
        (
            STUDY.replace("policy =", "polcy ="),
            "arm \"late\": unknown field `polcy`",
        ),
        (STUDY.replace("\"nvidia\"", "\"nvfp5\""), "nvfp5"),
        (
            STUDY.replace("name = \"late\"", "name = \"../up\""),
            "../up",
        ),
        (
            STUDY.replace("    name = \"late\"\n", ""),
            "arm 2 has no name",
        ),
        (format!("{STUDY}{arm}"), "two arms are called \"plain\""),
        (
            STUDY.replace("default.toml", "none.toml"),
            "none.toml: cannot read",
        ),
    ];
    for (text, expected) in cases {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, {expected:?} expected");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn where_a_run_lies_and_what_runs_it_is_no_difference_but_what_it_computes_is() {
    let asked = parse(STUDY).unwrap().arms.remove(1).config;
    let mut there = asked.clone();
    there.name = "other".to_owned();
    there.data.path = Some("elsewhere/text.txt".into());
    there.precision.backend = BackendName::Cuda;
    there.checkpoint.keep = 7;
    there.statistics_every = std::num::NonZeroU64::new(5);
    assert_eq!(run_differences(&there, &asked), [] as [String; 0]);
    there.steps = 78;
    there.precision.policy = "paper".to_owned();
    assert_eq!(
        run_differences(&there, &asked),
        [
            "precision.policy is \"paper\" there and \"uniform\" here",
            "steps is 78 there and 77 here"
        ]
    );
}
