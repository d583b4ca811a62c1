//! Names, precision and micro-batch for the linears that run inside a closure.
//!
//! All three are thread-local and read once, in forward, on the caller's thread, when the linear is
//! called; the node of the linear keeps what held then. Backward never reads them: it runs after
//! the scope has closed.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::recipe::Recipe;

thread_local! {
    static SCOPE: RefCell<Scope> = const {
        RefCell::new(Scope { path: String::new(), precision: Vec::new() })
    };
    static MICRO_BATCH: Cell<u32> = const { Cell::new(0) };
}

struct Scope {
    /// The open layer names, joined with dots.
    path: String,
    precision: Vec<Recipe>,
}

/// Names the linears that `f` calls, so that a [`Policy`](crate::Policy) can tell them apart.
///
/// Scopes nest: the name of a linear is all open names joined with dots. Works on any backend and
/// costs nothing where no decorator listens.
///
/// ```
/// use burn_nvfp4::{current_layer, layer};
/// layer("layers.3.mixer", || {
///     layer("in_proj", || assert_eq!(current_layer().as_deref(), Some("layers.3.mixer.in_proj")))
/// });
/// assert_eq!(current_layer(), None);
/// ```
pub fn layer<R>(name: &str, f: impl FnOnce() -> R) -> R {
    /// Restores the path when the closure returns or unwinds.
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPE.with_borrow_mut(|scope| scope.path.truncate(self.0));
        }
    }

    let _restore = SCOPE.with_borrow_mut(|scope| {
        let open = scope.path.len();
        if open > 0 {
            scope.path.push('.');
        }
        scope.path.push_str(name);
        Restore(open)
    });
    f()
}

/// Runs the linears that `f` calls under `recipe`, whatever the policy says.
///
/// The innermost scope wins. `precision(presets::HIGH_PRECISION, || ..)` keeps a layer out of
/// quantization, in backward too when the training order is `Nvfp4<Autodiff<B>>`.
pub fn precision<R>(recipe: Recipe, f: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPE.with_borrow_mut(|scope| scope.precision.pop());
        }
    }

    SCOPE.with_borrow_mut(|scope| scope.precision.push(recipe));
    let _restore = Restore;
    f()
}

/// Says which micro-batch of a step, counted over all devices that share it, the linears that `f`
/// calls belong to: stochastic rounding of gradients draws other bits in each.
///
/// Outside of every such scope it is the first one, 0.
pub fn micro_batch<R>(index: u32, f: impl FnOnce() -> R) -> R {
    struct Restore(u32);
    impl Drop for Restore {
        fn drop(&mut self) {
            MICRO_BATCH.set(self.0);
        }
    }

    let _restore = Restore(MICRO_BATCH.replace(index));
    f()
}

/// The micro-batch that a linear called here belongs to.
pub(crate) fn current_micro_batch() -> u32 {
    MICRO_BATCH.get()
}

thread_local! {
    /// What the open [`shared_weights`] scopes hold, innermost last.
    static SHARED: RefCell<Vec<HashMap<u64, Box<dyn Any>>>> = const { RefCell::new(Vec::new()) };
}

/// Has each weight that is a leaf of the graph packed once for all linears that `f` calls, fprop
/// and dgrad, instead of once for each of them.
///
/// For the micro-batches of one step of `Nvfp4<Autodiff<B>>`: the results have the bits that they
/// have without, and what was packed is dropped when `f` returns, before an optimizer changes the
/// weights. A weight that is quantized in another way in between is packed again. With a single
/// micro-batch it saves nothing.
pub fn shared_weights<R>(f: impl FnOnce() -> R) -> R {
    struct Close;
    impl Drop for Close {
        fn drop(&mut self) {
            let closed = SHARED.with_borrow_mut(Vec::pop);
            // Behind the borrow: what it holds may be anything.
            drop(closed);
        }
    }

    SHARED.with_borrow_mut(|open| open.push(HashMap::new()));
    let _close = Close;
    f()
}

/// What the innermost [`shared_weights`] scope holds under `key`, made anew if that is nothing or
/// does not fit; `None` outside of every scope.
pub(crate) fn shared<T: Clone + 'static>(
    key: u64,
    fits: impl FnOnce(&T) -> bool,
    make: impl FnOnce() -> T,
) -> Option<T> {
    let held = SHARED.with_borrow(|open| {
        let held = open.last()?.get(&key);
        Some(held.and_then(|held| held.downcast_ref::<T>().cloned()))
    })?;
    if let Some(held) = held
        && fits(&held)
    {
        return Some(held);
    }
    let made = make();
    let replaced = SHARED.with_borrow_mut(|open| {
        let scope = open.last_mut()?;
        scope.insert(key, Box::new(made.clone()))
    });
    drop(replaced);
    Some(made)
}

/// The name that a linear called here would have; `None` outside every [`layer`] scope.
pub fn current_layer() -> Option<String> {
    SCOPE.with_borrow(|scope| (!scope.path.is_empty()).then(|| scope.path.clone()))
}

/// Hands the open layer path and the innermost precision override to `f`.
pub(crate) fn with_current<R>(f: impl FnOnce(Option<&str>, Option<Recipe>) -> R) -> R {
    SCOPE.with_borrow(|scope| {
        let path = (!scope.path.is_empty()).then_some(scope.path.as_str());
        f(path, scope.precision.last().copied())
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_panic_inside_a_scope_closes_it() {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            layer("outer", || {
                layer("inner", || std::panic::resume_unwind(Box::new(())))
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(current_layer(), None);
    }

    #[test]
    fn what_is_shared_is_made_once_in_a_scope_and_dropped_with_it() {
        let made = std::cell::Cell::new(0);
        let get = |version: u32| {
            shared(
                7,
                |(made, _)| *made == version,
                || {
                    made.set(made.get() + 1);
                    (version, std::rc::Rc::new(()))
                },
            )
        };
        assert!(get(1).is_none());
        let outlived = shared_weights(|| {
            let first = get(1).unwrap().1;
            assert!(std::rc::Rc::ptr_eq(&first, &get(1).unwrap().1));
            assert_eq!(made.get(), 1);
            shared_weights(|| get(1).unwrap());
            assert_eq!(made.get(), 2, "an inner scope has its own");
            get(2).unwrap();
            assert_eq!(made.get(), 3, "what does not fit is made again");
            std::rc::Rc::downgrade(&get(2).unwrap().1)
        });
        assert!(outlived.upgrade().is_none());
        assert!(get(2).is_none());
    }

    #[test]
    fn siblings_do_not_see_each_other() {
        layer("block", || {
            layer("up", || {
                assert_eq!(current_layer().as_deref(), Some("block.up"))
            });
            layer("down", || {
                assert_eq!(current_layer().as_deref(), Some("block.down"))
            });
            assert_eq!(current_layer().as_deref(), Some("block"));
        });
    }
}
