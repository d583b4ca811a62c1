//! Parameters by name: reading them out of a model, writing them back.
//!
//! A name is the path of module fields joined with dots, e.g. `layers.0.mixer.in_proj.weight`.
//! Burn's own records are keyed by random ids; names outlive a process.

use std::borrow::Borrow;
use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use crate::checkpoint::run::NamedTensors;
use crate::hybrid::field_path::FieldPath;

/// Copies every float parameter to the host.
pub fn read_parameters<B: Backend, M: Module<B>>(model: &M) -> NamedTensors {
    struct Read {
        path: FieldPath,
        tensors: NamedTensors,
    }
    impl<B: Backend> ModuleVisitor<B> for Read {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.tensors
                .insert(self.path.name(), param.val().into_data());
        }
    }
    let mut visitor = Read {
        path: FieldPath::default(),
        tensors: NamedTensors::new(),
    };
    model.visit(&mut visitor);
    visitor.tensors
}

/// What does not fit between a model and tensors for it, one line each; empty if all does.
pub fn parameter_problems<B: Backend, M: Module<B>>(
    model: &M,
    tensors: &NamedTensors,
) -> Vec<String> {
    let expected = read_shapes(model);
    let mut problems = Vec::new();
    for (name, shape) in &expected {
        problems.extend(fitting(name, shape, tensors.get(name)).err());
    }
    for name in tensors.keys().filter(|name| !expected.contains_key(*name)) {
        problems.push(format!("{name}: the model has no such parameter"));
    }
    problems
}

/// What was found under a name, if it has the shape that is expected there.
///
/// # Errors
/// One line: what is there instead.
pub(super) fn fitting<T: Borrow<TensorData>>(
    name: &str,
    shape: &[usize],
    found: Option<T>,
) -> Result<T, String> {
    let data = found.ok_or_else(|| format!("{name}: missing, {shape:?} expected"))?;
    let its_own = data.borrow().shape.as_slice();
    if its_own == shape {
        return Ok(data);
    }
    Err(format!("{name}: shape {its_own:?}, {shape:?} expected"))
}

fn read_shapes<B: Backend, M: Module<B>>(model: &M) -> BTreeMap<String, Vec<usize>> {
    struct Shapes {
        path: FieldPath,
        shapes: BTreeMap<String, Vec<usize>>,
    }
    impl<B: Backend> ModuleVisitor<B> for Shapes {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.shapes
                .insert(self.path.name(), param.val().dims().to_vec());
        }
    }
    let mut visitor = Shapes {
        path: FieldPath::default(),
        shapes: BTreeMap::new(),
    };
    model.visit(&mut visitor);
    visitor.shapes
}

/// Replaces every float parameter by the tensor of its name; the ids stay.
///
/// # Errors
/// Every problem that [`parameter_problems`] finds; the model is then lost, not half-loaded.
pub fn write_parameters<B: Backend, M: Module<B>>(
    model: M,
    tensors: &NamedTensors,
    device: &B::Device,
) -> Result<M, Vec<String>> {
    struct Write<'a, B: Backend> {
        path: FieldPath,
        tensors: &'a NamedTensors,
        device: &'a B::Device,
    }
    impl<B: Backend> ModuleMapper<B> for Write<'_, B> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let Some(data) = self.tensors.get(&self.path.name()) else {
                return param;
            };
            let (id, old, mapper) = param.consume();
            let tensor = Tensor::from_data(data.clone().convert_dtype(old.dtype()), self.device);
            let tensor = tensor.set_require_grad(old.is_require_grad());
            Param::from_mapped_value(id, tensor, mapper)
        }
    }
    let problems = parameter_problems(&model, tensors);
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(model.map(&mut Write::<B> {
        path: FieldPath::default(),
        tensors,
        device,
    }))
}
