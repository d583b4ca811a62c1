//! What a configuration says, and what is refused in it.

use super::*;

const DEFAULT: &str = include_str!("../../../../configs/default.toml");

fn parse(text: &str) -> Result<TrainConfig, TrainConfigError> {
    TrainConfig::from_toml(text, Path::new("run.toml"))
}

#[test]
fn every_config_in_the_repository_is_valid_and_survives_a_round_trip() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // Those of studies are tested where they are read.
        if name.ends_with(".toml") && !name.starts_with("study-") {
            let config =
                TrainConfig::from_toml(&std::fs::read_to_string(&path).unwrap(), &path).unwrap();
            let again = parse(&toml::to_string(&config).unwrap()).unwrap();
            assert_eq!(again, config, "{}", path.display());
            count += 1;
        }
    }
    assert!(count > 0);
}

#[test]
fn unknown_and_missing_fields_are_named_with_their_line() {
    let error = parse(&DEFAULT.replace("seed =", "sead ="))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("run.toml: line "), "{error}");
    assert!(error.contains("unknown field `sead`"), "{error}");
    let error = parse(&DEFAULT.replace("beta1 = 0.9\n", ""))
        .unwrap_err()
        .to_string();
    assert!(error.contains("missing field `beta1`"), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn watched_weights_are_read_and_their_numbers_checked() {
    use burn_nvfp4::oscillation::WindowEnd;

    let of = |numbers: &str| {
        let table = format!("{DEFAULT}\n[precision.osci_reset]\n{numbers}");
        let config = parse(&table).unwrap();
        let again = parse(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        let model = HybridConfig::preset("tiny-1m", 256).unwrap();
        config.precision.watched_weights(&model, config.steps)
    };
    let numbers = "start = 500\nperiod = 200\nwindow = 50\nthreshold = 8.0\n";
    let watched = of(numbers).unwrap().unwrap();
    assert_eq!(watched.schedule, OsciReset::from_step(500));
    let counted = of(&format!("{numbers}at_end = \"count\""))
        .unwrap()
        .unwrap();
    assert_eq!(counted.schedule.at_end, WindowEnd::Count);
    let error = of(&numbers.replace("window = 50", "window = 0")).unwrap_err();
    assert!(error.to_string().contains("at least one step"), "{error}");
    // The grid of a trace is that of a weight's own amax.
    let renewed = DEFAULT.replace("recipe = \"nvidia\"", "recipe = \"nvidia_renewed_16\"");
    assert!(renewed != DEFAULT);
    let renewed = parse(&format!("{renewed}\n[precision.osci_reset]\n{numbers}"));
    let error = renewed.unwrap_err().to_string();
    assert!(error.starts_with("precision.osci_reset"), "{error}");
}

#[test]
fn values_that_make_no_sense_are_named() {
    let default = parse(DEFAULT).unwrap();
    let check = |change: &dyn Fn(&mut TrainConfig), field: &str| {
        let mut config = default.clone();
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}, {field} expected");
    };
    check(&|c| c.steps = 0, "steps is 0");
    check(&|c| c.steps = u64::MAX, "steps is");
    check(&|c| c.name = "../up".to_owned(), "name is");
    check(
        &|c| c.batch.sequences = (1 << 40).try_into().unwrap(),
        "batch.sequences",
    );
    check(&|c| c.schedule.peak = f64::NAN, "schedule.peak is NaN");
    check(
        &|c| c.schedule.decay = 1.5,
        "schedule.warmup + schedule.decay",
    );
    check(&|c| c.schedule.last = 1.0, "schedule.last is 1");
    check(&|c| c.optimizer.beta2 = 1.0, "optimizer.beta2 is 1");
    check(
        &|c| c.optimizer.clip_norm = Some(0.0),
        "optimizer.clip_norm is Some(0.0)",
    );
    check(&|c| c.checkpoint.keep = 0, "checkpoint.keep is 0");
    check(&|c| c.peak_tflops = Some(-1.0), "peak_tflops is Some(-1.0)");
    check(
        &|c| c.guard.non_finite_in_a_row = 0,
        "guard.non_finite_in_a_row is 0",
    );
    check(&|c| c.sample.temperature = -1.0, "sample.temperature is -1");
    let devices = |c: &mut TrainConfig, devices: &[usize]| {
        let devices = devices.to_vec();
        c.parallel = Some(ParallelConfig { devices });
    };
    check(
        &|c| devices(c, &[]),
        "parallel.devices is [], it must be at",
    );
    check(&|c| devices(c, &[1, 1]), "parallel.devices is [1, 1]");
    // Eight sequences in a step.
    check(
        &|c| devices(c, &[0, 1, 2]),
        "parallel.devices is [0, 1, 2], it must be as many as divide batch.sequences * \
         batch.accumulate, which is 8 * 1",
    );
    check(
        &|c| {
            devices(c, &[0, 1]);
            c.precision.recipe = burn_nvfp4::recipe::presets::NVIDIA_RENEWED_16;
        },
        "parallel.devices is [0, 1], it must be one device with a recipe that has \
         scale_renewal",
    );
    let mut even = default.clone();
    devices(&mut even, &[2, 0]);
    even.validate().unwrap();
    let identity = |config: &TrainConfig| {
        let model = HybridConfig::preset("tiny-1m", 256).unwrap();
        config.identity(&model, 0, "bytes")
    };
    assert_eq!(identity(&even), identity(&default), "devices may change");
}
