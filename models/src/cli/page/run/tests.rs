//! Sections, escaping, and runs that are not whole.

use std::path::PathBuf;

use burn_nvfp4_models::train::layers::{GemmFigure, OperandFigure};
use burn_nvfp4_models::train::log::{FinalLine, Forward, LogLine, RewindLine, SkippedLine};
use serde_json::json;

use super::*;

fn run(lines: Vec<LogLine>) -> Run {
    Run {
        folder: PathBuf::from("runs/x"),
        record: RunRecord::of(lines),
        config: "name = \"<script>\"\n".to_owned(),
    }
}

fn start(seed: u64) -> LogLine {
    start_on(seed, json!({"fingerprint": "ab"}))
}

fn start_on(seed: u64, data: serde_json::Value) -> LogLine {
    LogLine::Start {
        config: json!({
            "name": "a<script>alert(1)</script>", "seed": seed, "steps": 4,
            "precision": {"recipe": "nvidia", "policy": "paper", "backend": "ndarray"},
        }),
        model: json!(null),
        parameters: 123,
        data,
        ranks: 1,
    }
}

fn step(step: u64, loss: f64) -> LogLine {
    LogLine::Step {
        step,
        loss,
        bits_per_byte: loss,
        learning_rate: 1e-3,
        grad_norm: 0.5,
        tokens: 10 * step,
        tokens_per_second: 1000.0,
        mfu: None,
        seconds: 1.0,
    }
}

fn validation(step: u64, loss: f64) -> LogLine {
    LogLine::Validation {
        step,
        forward: Forward::Recipe,
        loss,
        bits_per_byte: loss / 2.0,
    }
}

fn last(loss: f64) -> LogLine {
    LogLine::Final(FinalLine {
        step: 4,
        train_loss: loss,
        validation_loss: loss,
        validation_bits_per_byte: loss,
        high_precision_loss: loss,
        high_precision_bits_per_byte: loss,
        order0_bits_per_byte: 5.0,
        order1_bits_per_byte: 4.0,
        tokens_per_second: 1000.0,
        seconds: 1.0,
        waited_seconds: None,
        peak_memory_bytes: Some(3 << 29),
    })
}

fn whole(seed: u64, loss: f64) -> Vec<LogLine> {
    let mut lines = vec![start(seed)];
    lines.extend((1..=4).map(|at| step(at, loss)));
    lines.extend([validation(4, loss), last(loss)]);
    lines
}

/// Nothing that a browser would fetch or run.
fn is_alone(page: &str) -> bool {
    let page = page.replace("http://www.w3.org/2000/svg", "");
    !["http", "<script", "src=", "@import", "url("]
        .iter()
        .any(|word| page.contains(word))
}

#[test]
fn a_page_has_every_section_and_needs_nothing_from_elsewhere() {
    let mut lines = whole(1, 2.0);
    let figure = OperandFigure {
        layer: "layers.0.mixer.in_proj".to_owned(),
        operand: "fprop.lhs".to_owned(),
        sqnr_db: Some(21.5),
        underflow: 0.125,
        saturation: 0.0,
        zero_scale_blocks: Some(0.0),
        tensor_amax: Some(3.5),
        scaled_to_four: Some(0.25),
        rounding_bias: Some(-0.001),
    };
    let gemm = GemmFigure {
        layer: "layers.0.mixer.in_proj".to_owned(),
        gemm: "fprop".to_owned(),
        lhs: "NVFP4 <1x16>".to_owned(),
        rhs: "NVFP4 16x16".to_owned(),
        routine: "emulated".to_owned(),
    };
    lines.extend([
        LogLine::Quantization {
            step: 1,
            operands: vec![figure],
        },
        LogLine::Gemms {
            step: 1,
            gemms: vec![gemm],
        },
    ]);
    let page = page(&run(lines), None).unwrap();
    assert!(is_alone(&page), "{page}");
    for section in [
        "Loss",
        "Learning rate and gradient norm",
        "What quantization does",
        "What ran where",
        "Throughput",
        "Events",
        "Configuration",
    ] {
        assert!(page.contains(&format!("<h2>{section}</h2>")), "{section}");
    }
    for text in [
        "a&lt;script&gt;alert(1)&lt;/script&gt;",
        "name = &quot;&lt;script&gt;&quot;",
        "NVFP4 &lt;1x16&gt;",
        "21.5 dB (fprop.lhs)",
        "cut off, worst operand: none in any sample",
        "1: layers.0.mixer.in_proj",
        "-0.100",
        "25.000",
        "<b>1.50</b><span>peak memory, GiB",
        "<b>finished</b>",
        "validation, nvidia: 2.000",
    ] {
        assert!(page.contains(text), "{text:?} expected in {page}");
    }
}

#[test]
fn a_run_that_was_interrupted_before_its_first_step_has_a_page() {
    let lines = vec![
        start(1),
        LogLine::Stopped {
            step: 0,
            reason: "interrupted".to_owned(),
        },
    ];
    let page = page(&run(lines), None).unwrap();
    assert!(
        page.contains("<b>not finished</b>") && page.contains("<b>0 of 4</b>"),
        "{page}"
    );
    assert!(page.contains("stopped: interrupted") && page.contains("No step was sampled"));
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn what_went_wrong_is_listed_in_the_order_of_the_steps() {
    let skipped = LogLine::Skipped(SkippedLine {
        step: 3,
        reason: SkipReason::NonFinite,
        loss: "NaN".to_owned(),
        grad_norm: "inf".to_owned(),
        place: Some("wgrad.rhs of <layer>".to_owned()),
        in_a_row: 1,
        skipped: 1,
    });
    let rewind = LogLine::Rewind(RewindLine {
        from: 2,
        to: 1,
        loss: 9.0,
        limit: 3.0,
        rewinds: 1,
    });
    let lines = vec![start(1), step(1, 2.0), rewind, skipped];
    let page = page(&run(lines), None).unwrap();
    let rewound = page
        .find("back to step 1: loss 9.0000, more than 3.0000")
        .unwrap();
    let skipped = page
        .find("NaN or infinity in wgrad.rhs of &lt;layer&gt;")
        .unwrap();
    assert!(rewound < skipped);
    assert!(page.contains("<b>1</b><span>steps without an update"));
}

#[test]
fn a_gap_is_paired_where_the_runs_saw_the_same_batches() {
    let (here, there) = (run(whole(1, 2.2)), run(whole(1, 2.0)));
    let paired = page(&here, Some(&there)).unwrap();
    assert!(paired.contains("+0.2000 nats, +10.00 %"), "{paired}");
    assert!(paired.contains("training losses of the same batches"));
    let other = page(&here, Some(&run(whole(2, 2.0)))).unwrap();
    assert!(other.contains("The runs differ in seed"), "{other}");
    assert!(!page(&here, None).unwrap().contains("<h2>Gap</h2>"));
}

/// The tokens of a validation folder were not compared.
#[test]
fn validations_on_other_tokens_are_not_compared() {
    let validated = |seed: u64, loss: f64, on: &str| {
        let mut lines = whole(seed, loss);
        lines[0] = start_on(
            seed,
            json!({"fingerprint": "ab", "validation_fingerprint": on}),
        );
        run(lines)
    };
    let here = validated(1, 2.2, "cd");
    let same = page(&here, Some(&validated(1, 2.0, "cd"))).unwrap();
    assert!(same.contains("+0.2000 nats") && same.contains("Dots: validation"));
    // A log of before does not say.
    let before = page(&here, Some(&run(whole(1, 2.0)))).unwrap();
    assert!(before.contains("+0.2000 nats"), "{before}");
    let other = page(&here, Some(&validated(1, 2.0, "ef"))).unwrap();
    assert!(other.contains("their validations are not compared"));
    assert!(other.contains("training losses of the same batches"));
    assert!(!other.contains("+0.2000 nats"), "{other}");
    let neither = page(&here, Some(&validated(2, 2.0, "ef"))).unwrap();
    assert!(neither.contains("differ in seed and were validated on other tokens: nothing"));
}
