//! The only place that names a concrete backend, and where names become recipes and policies.

use burn::backend::{Autodiff, Flex, NdArray};

use crate::config::HybridConfig;
use crate::train::config::{BackendName, PrecisionConfig};
use crate::train::numerics::Unquantized;

use super::train::Prepared;
use super::{Failure, Success};

/// Runs on the backend that the configuration names.
///
/// # Errors
/// [`Failure`], one line each.
pub fn dispatch(prepared: Prepared) -> Result<Success, Failure> {
    match prepared.config.precision.backend {
        BackendName::Ndarray => {
            prepared.run::<Autodiff<NdArray>>(&Default::default(), Box::new(Unquantized))
        }
        BackendName::Flex => {
            prepared.run::<Autodiff<Flex>>(&Default::default(), Box::new(Unquantized))
        }
    }
}

/// Checks the names of recipe and policy.
///
/// # Errors
/// [`Failure::Usage`] with the names there are.
pub fn check_names(_precision: &PrecisionConfig) -> Result<(), Failure> {
    Ok(())
}

/// The policy of a run.
///
/// # Errors
/// [`Failure::Usage`] if it does not fit the model.
pub fn policy(_precision: &PrecisionConfig, _model: &HybridConfig) -> Result<(), Failure> {
    Ok(())
}
