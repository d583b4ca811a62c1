//! Where modules get their parameters from: a table of names, and values on request.
//!
//! Initialisation and checkpoints both build a model through this, so there is one constructor per
//! module and never a random model that is overwritten afterwards.

use std::collections::HashMap;

use burn::module::Param;
use burn::tensor::backend::Backend;
use burn::tensor::{Element, Tensor, TensorData};

use super::wide;
use crate::config::params::ParamSpec;

/// Hands out the parameters of one model by name.
pub struct ParamSource<'a, B: Backend> {
    specs: HashMap<String, ParamSpec>,
    values: &'a mut dyn FnMut(&ParamSpec) -> TensorData,
    device: &'a B::Device,
}

impl<B: Backend> std::fmt::Debug for ParamSource<'_, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParamSource")
            .field("left", &self.specs.len())
            .finish_non_exhaustive()
    }
}

impl<'a, B: Backend> ParamSource<'a, B> {
    /// A source of these parameters. `values` is asked once per parameter, in module order, and
    /// answers with data of the shape in the table.
    pub fn new(
        specs: Vec<ParamSpec>,
        device: &'a B::Device,
        values: &'a mut dyn FnMut(&ParamSpec) -> TensorData,
    ) -> Self {
        let specs = specs
            .into_iter()
            .map(|spec| (spec.name.clone(), spec))
            .collect();
        Self {
            specs,
            values,
            device,
        }
    }

    /// The parameter called `name`, if the model has it (biases are optional).
    ///
    /// Matrices get the backend's default float dtype. Vectors are small and sensitive (`a_log`,
    /// norm weights), so they stay in f32 even where the default is narrower.
    ///
    /// # Panics
    /// If the rank is not `D`: the module and the table disagree.
    pub fn take_optional<const D: usize>(&mut self, name: &str) -> Option<Param<Tensor<B, D>>> {
        let spec = self.specs.remove(name)?;
        assert_eq!(spec.shape.len(), D, "rank of {name}");
        let data = (self.values)(&spec);
        let default = <B::FloatElem as Element>::dtype();
        let dtype = if D == 1 { wide(default) } else { default };
        Some(Param::from_tensor(Tensor::from_data(
            data,
            (self.device, dtype),
        )))
    }

    /// The parameter called `name`.
    ///
    /// # Panics
    /// If the table does not have it, or not with this rank.
    pub fn take<const D: usize>(&mut self, name: &str) -> Param<Tensor<B, D>> {
        self.take_optional(name)
            .unwrap_or_else(|| panic!("{name} is not in the parameter table"))
    }

    /// Names that no module has taken: empty once a model is complete.
    pub fn left_over(&self) -> Vec<&str> {
        self.specs.keys().map(String::as_str).collect()
    }
}
