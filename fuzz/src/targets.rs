//! The targets, each with the memory that it may take.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::bundle::{Bundle, Desk};
use crate::memory;

mod checkpoint;
mod config;
mod eval;
mod run;
mod serving;
mod tokenizer;

/// One loader, or several that read the same files.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its folder of seeds.
    pub name: &'static str,
    /// Loads an input; true if nothing was refused.
    run: fn(&Desk, &Bundle<'_>) -> bool,
    /// Most bytes that are allocated at once: this, and so many for each byte of the input.
    bound: (usize, usize),
}

const MIB: usize = 1 << 20;

/// All targets.
///
/// A JSON value of two bytes takes 32 in memory, and twice that while its list grows. The table of
/// a model's parameters takes up to 2 MiB, what anything allocates once another one or two.
pub const TARGETS: [Target; 9] = [
    Target {
        name: "config",
        run: config::model,
        bound: (4 * MIB, 100),
    },
    Target {
        name: "train_config",
        run: config::training,
        bound: (4 * MIB, 100),
    },
    Target {
        name: "checkpoint",
        run: checkpoint::load,
        bound: (8 * MIB, 100),
    },
    Target {
        name: "serving",
        run: serving::convert,
        bound: (8 * MIB, 100),
    },
    // The library's regular expressions and automata have constants of their own, and its trie of
    // a Unigram vocabulary a hash map for every byte.
    Target {
        name: "tokenizer",
        run: tokenizer::encode,
        bound: (64 * MIB, 500),
    },
    Target {
        name: "eval_items",
        run: eval::items,
        bound: (4 * MIB, 100),
    },
    Target {
        name: "eval_results",
        run: eval::results,
        bound: (4 * MIB, 100),
    },
    Target {
        name: "answers",
        run: eval::answers,
        bound: (8 * MIB, 100),
    },
    Target {
        name: "run",
        run: run::resume,
        bound: (8 * MIB, 100),
    },
];

impl Target {
    /// The target of this name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        static ALL: [Target; 9] = TARGETS;
        ALL.iter().find(|target| target.name == name)
    }

    /// Gives the target an input; true if nothing was refused.
    ///
    /// # Errors
    /// What does not hold: a panic, or memory beyond the bound.
    pub fn check(&self, desk: &Desk, input: &[u8]) -> Result<bool, String> {
        let bundle = Bundle::of(input);
        let work = AssertUnwindSafe(|| (self.run)(desk, &bundle));
        let (result, peak) = memory::peak(|| catch_unwind(work));
        let accepted = result.map_err(|panic| message(&*panic))?;
        let (constant, factor) = self.bound;
        let most = constant + factor * input.len();
        match peak <= most {
            true => Ok(accepted),
            false => Err(format!(
                "{peak} bytes were allocated for an input of {}, at most {most} may be",
                input.len()
            )),
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("a panic: {}", text.unwrap_or("without a message"))
}
