//! `nvfp4 inspect` of a run: what its log says of quantization.

use std::path::Path;

use burn_nvfp4_models::checkpoint::run::RunDirectory;
use burn_nvfp4_models::study::record::RunRecord;

use crate::cli::{Failure, measured};

/// True for a folder that `nvfp4 train` wrote.
pub(super) fn is_run(folder: &Path) -> bool {
    RunDirectory::at(folder).log().is_file()
}

/// The operands of the last step that was measured, and how GEMMs ran.
///
/// # Errors
/// [`Failure`] for a log that cannot be read, and for a run that measured nothing.
pub(super) fn tables(folder: &Path) -> Result<String, Failure> {
    let log = RunDirectory::at(folder).log();
    let record = RunRecord::read(&log).map_err(Failure::error)?;
    let Some((step, operands)) = record.quantization.last_key_value() else {
        return Err(Failure::Error(format!(
            "{}: no step of this run was measured; nvfp4 train --statistics-every N measures every \
             N-th",
            folder.display()
        )));
    };
    let mut out = format!("step {step}\n{}", measured::operands(operands).text());
    for (step, gemms) in &record.gemms {
        out += &format!("\nfrom step {step} on\n{}", measured::gemms(gemms).text());
    }
    Ok(out)
}
