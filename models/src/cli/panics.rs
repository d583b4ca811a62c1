//! What a panic looks like to the user: one line, whichever thread it happens on.

use std::io::Write;
use std::panic::{PanicHookInfo, UnwindSafe, catch_unwind, set_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use burn_nvfp4_models::data::guard::is_guarded;

/// Where messages go while [`attempt`] runs; `None` at other times.
static CAPTURED: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// A panic is a bug, but its report is one line too, and only the first one: a worker's panic makes
/// others.
pub(super) fn report_in_one_line() {
    let seen = AtomicBool::new(false);
    set_hook(Box::new(move |info| {
        if is_guarded() || super::signal::is_leaving() {
            return;
        }
        let mut captured = CAPTURED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(messages) = captured.as_mut() {
            messages.push(message(info));
            return;
        }
        drop(captured);
        if !seen.swap(true, Ordering::SeqCst) {
            let message = message(info);
            let line = out_of_memory(&message).unwrap_or_else(|| {
                let place = info
                    .location()
                    .map(|at| format!(" ({}:{})", at.file(), at.line()));
                format!("internal error: {message}{}", place.unwrap_or_default())
            });
            // Nobody is left to tell if writing fails.
            let _ = writeln!(std::io::stderr(), "error: {line}");
        }
    }));
}

/// What to tell of a panic that says that a device has no memory left: CubeCL has no other way to.
fn out_of_memory(message: &str) -> Option<String> {
    let advice = "take a smaller --batch-size or --seq-len";
    let too_large = "can't allocate buffer of size: ";
    if let Some(at) = message.find(too_large) {
        let digits = message[at + too_large.len()..]
            .chars()
            .take_while(char::is_ascii_digit);
        let bytes: f64 = digits.collect::<String>().parse().ok()?;
        let gigabytes = bytes / 1e9;
        return Some(format!(
            "out of device memory: a buffer of {gigabytes:.1} GB does not fit; {advice}"
        ));
    }
    let exhausted = ["OUT_OF_MEMORY", "out of memory", "OutOfMemory"];
    let is_exhausted = exhausted.iter().any(|text| message.contains(text));
    is_exhausted.then(|| format!("out of device memory; {advice}"))
}

fn message(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("no message");
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs what a library may answer with a panic: opening a device. The first message is the error.
pub(super) fn attempt<T>(work: impl FnOnce() -> T + UnwindSafe) -> Result<T, String> {
    let start = || *CAPTURED.lock().unwrap_or_else(PoisonError::into_inner) = Some(vec![]);
    start();
    let result = catch_unwind(work);
    let mut captured = CAPTURED.lock().unwrap_or_else(PoisonError::into_inner);
    let messages = captured.take().unwrap_or_default();
    result.map_err(|_| {
        let first = messages.into_iter().next();
        first.unwrap_or_else(|| "no reason is given".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::out_of_memory;

    #[test]
    fn exhausted_memory_is_told_with_the_size_if_there_is_one() {
        let told = |message| out_of_memory(message).unwrap_or_default();
        assert_eq!(
            told("an `Err` value: can't allocate buffer of size: 80609280000 No backtrace"),
            "out of device memory: a buffer of 80.6 GB does not fit; \
             take a smaller --batch-size or --seq-len"
        );
        assert_eq!(
            told("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")"),
            "out of device memory; take a smaller --batch-size or --seq-len"
        );
        assert_eq!(out_of_memory("index out of bounds"), None);
    }
}
