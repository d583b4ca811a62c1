//! Names for the linear layers of a forward pass.
//!
//! [`layer`] pushes a name on a stack of the calling thread for the time of a closure; nested
//! names are joined with a dot. What runs inside can ask for [`current_layer`].

use std::cell::RefCell;

thread_local! {
    static STACK: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Takes the innermost name off the stack, also when the closure panics.
struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        STACK.with_borrow_mut(Vec::pop);
    }
}

/// Runs `f` with `name` as the innermost layer name.
///
/// ```
/// use burn_nvfp4::scope::{current_layer, layer};
/// let name = layer("layers.0", || layer("in_proj", current_layer));
/// assert_eq!(name.as_deref(), Some("layers.0.in_proj"));
/// assert_eq!(current_layer(), None);
/// ```
pub fn layer<R>(name: &str, f: impl FnOnce() -> R) -> R {
    STACK.with_borrow_mut(|stack| stack.push(name.into()));
    let _guard = Guard;
    f()
}

/// The names of all open scopes of this thread, outermost first, joined with dots.
pub fn current_layer() -> Option<String> {
    STACK.with_borrow(|stack| (!stack.is_empty()).then(|| stack.join(".")))
}
