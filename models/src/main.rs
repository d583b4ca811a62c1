//! The command `nvfp4`. Here and not in the library, where a change of a model would compile every
//! backend's training again.

use std::process::ExitCode;

mod cli;

fn main() -> ExitCode {
    cli::main()
}
