//! What a finished run shows: the summary table, and where its files are.

use std::fmt::Write;
use std::path::Path;

use burn_nvfp4_models::train::log::FinalLine;
use burn_nvfp4_models::train::plan::Outcome;
use burn_nvfp4_models::train::renderer::duration;

/// The summary table.
pub(crate) fn summary(
    figures: &FinalLine,
    outcome: &Outcome,
    recipe: &str,
    directory: &Path,
) -> String {
    let mut out = String::new();
    let mut row = |name: &str, loss: Option<f64>, bits: Option<f64>| {
        let number =
            |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.4}"));
        let _ = writeln!(out, "{name:<44} {:>12} {:>14}", number(loss), number(bits));
    };
    row("", None, None);
    row(
        "training, last tenth of the steps",
        Some(figures.train_loss),
        None,
    );
    let (loss, bits) = (figures.validation_loss, figures.validation_bits_per_byte);
    row(
        &format!("validation, forward in {recipe}"),
        Some(loss),
        Some(bits),
    );
    let (loss, bits) = (
        figures.high_precision_loss,
        figures.high_precision_bits_per_byte,
    );
    row(
        "validation, forward in high precision",
        Some(loss),
        Some(bits),
    );
    row(
        "  the same text by byte pair counts (order 1)",
        None,
        Some(figures.order1_bits_per_byte),
    );
    row(
        "  the same text by byte counts (order 0)",
        None,
        Some(figures.order0_bits_per_byte),
    );
    let heading = format!("{:<44} {:>12} {:>14}", "", "nats/token", "bits/byte");
    let table = out.replacen(out.lines().next().unwrap_or_default(), &heading, 1);
    let skipped = match outcome.skipped {
        0 => String::new(),
        skipped => format!(" ({skipped} without an update)"),
    };
    let speed = format!(
        "{} steps{skipped}, {:.0} tokens/s in training, {} in all, {:.1} % of it for checkpoints\n",
        figures.step,
        figures.tokens_per_second,
        duration(figures.seconds),
        100.0 * outcome.waited_seconds / figures.seconds,
    );
    let files = format!(
        "files: {}/{{config.toml, log.jsonl, loss.svg, sample.txt, checkpoints/}}\n",
        directory.display()
    );
    format!("\n{table}{speed}{files}")
}

/// Bytes for a terminal: invalid UTF-8 and control characters become visible marks.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mark = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_escapes_of_a_model_do_not_reach_the_terminal() {
        assert_eq!(
            printable(b"a\x1b[31mb\n\tc\xff\0"),
            "a\u{fffd}[31mb\n\tc\u{fffd}\u{fffd}"
        );
    }
}
