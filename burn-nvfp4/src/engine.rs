//! What the decorator asks of a base backend.

use burn_autodiff::Autodiff;
use burn_autodiff::checkpoint::strategy::CheckpointStrategy;
use burn_backend::Backend;
#[cfg(feature = "flex")]
use burn_flex::Flex;
#[cfg(feature = "ndarray")]
use burn_ndarray::NdArray;

/// A backend that [`Nvfp4`](crate::Nvfp4) can wrap.
pub trait Nvfp4Engine: Backend {}

#[cfg(feature = "ndarray")]
impl Nvfp4Engine for NdArray {}

#[cfg(feature = "flex")]
impl Nvfp4Engine for Flex {}

impl<B: Nvfp4Engine, C: CheckpointStrategy> Nvfp4Engine for Autodiff<B, C> {}
