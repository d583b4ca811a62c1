//! The command `nvfp4`; everything is in [`burn_nvfp4_models::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    burn_nvfp4_models::cli::main()
}
