//! The progress bar of a task, on stderr and only if that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for so many requests.
pub(super) fn bar(task: &str, requests: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {elapsed} left {eta}")
        .expect("a template of known keys");
    ProgressBar::new(requests as u64)
        .with_style(style)
        .with_message(task.to_owned())
}
