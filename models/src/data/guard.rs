//! Other people's code on outside input: a panic in it is an error of ours.
//!
//! The `tokenizers` crate answers some files and texts with a panic. `guarded` turns it into a
//! message. A panic hook runs all the same, so it has to ask [`is_guarded`] before it reports.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// True on a thread in `guarded`: the panic is going to be an error, and is nobody's to report.
pub fn is_guarded() -> bool {
    GUARDED.get()
}

/// Runs `work` to its end or to its panic, whose message is the error.
///
/// What `work` changes is not to be used after a panic.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(before);
    result.map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!(
        "the tokenizers library fails: {}",
        text.unwrap_or("no reason is given")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        assert_eq!(guarded(is_guarded), Ok(true));
        let error = guarded(|| panic!("index {} of 2", 7)).unwrap_err();
        assert_eq!(error, "the tokenizers library fails: index 7 of 2");
        assert!(!is_guarded());
    }
}
