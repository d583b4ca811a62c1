//! The optimizer's state by name, out of it and back in.

use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::AdamWState;
use burn::optim::record::AdaptorRecord;
use burn::tensor::Tensor;
use burn_hybrid_ops::TrainingEngine;

use super::{Records, state_after};
use crate::checkpoint::run::NamedTensors;
use crate::hybrid::field_path::FieldPath;
use crate::train::params::fitting;

/// Names of the two moments of a parameter.
fn moment_names(parameter: &str) -> [String; 2] {
    [
        format!("{parameter}.moment_1"),
        format!("{parameter}.moment_2"),
    ]
}

/// Copies the moments to the host, by name. Every parameter has taken `step` updates.
pub(crate) fn read_moments<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    records: &Records<B, M>,
) -> NamedTensors {
    struct Read<'a, B: TrainingEngine, M: AutodiffModule<B>> {
        path: FieldPath,
        records: &'a Records<B, M>,
        tensors: NamedTensors,
    }
    impl<B: TrainingEngine, M: AutodiffModule<B>> ModuleVisitor<B> for Read<'_, B, M> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let Some(record) = self.records.get(&param.id) else {
                return;
            };
            let state: AdamWState<B::InnerBackend, D> = record.clone().into_state();
            let [first, second] = moment_names(&self.path.name());
            self.tensors
                .insert(first, state.momentum.moment_1.into_data());
            self.tensors
                .insert(second, state.momentum.moment_2.into_data());
        }
    }
    let path = FieldPath::default();
    let mut visitor = Read::<B, M> {
        path,
        records,
        tensors: NamedTensors::new(),
    };
    model.visit(&mut visitor);
    visitor.tensors
}

/// Builds the optimizer's record from moments by name, after `step` updates.
///
/// # Errors
/// Every missing, misshapen or unexpected tensor.
pub(crate) fn write_moments<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    mut tensors: NamedTensors,
    step: usize,
    device: &B::Device,
) -> Result<Records<B, M>, Vec<String>> {
    struct Write<'a, B: TrainingEngine, M: AutodiffModule<B>> {
        path: FieldPath,
        tensors: &'a mut NamedTensors,
        step: usize,
        device: &'a B::Device,
        records: Records<B, M>,
        problems: Vec<String>,
    }
    impl<B: TrainingEngine, M: AutodiffModule<B>> Write<'_, B, M> {
        fn take<const D: usize>(
            &mut self,
            name: &str,
            shape: &[usize],
        ) -> Option<Tensor<B::InnerBackend, D>> {
            match fitting(name, shape, self.tensors.remove(name)) {
                Ok(data) => Some(Tensor::from_data(data, self.device)),
                Err(problem) => {
                    self.problems.push(problem);
                    None
                }
            }
        }
    }
    impl<B: TrainingEngine, M: AutodiffModule<B>> ModuleVisitor<B> for Write<'_, B, M> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let shape = param.val().dims();
            let [first, second] = moment_names(&self.path.name());
            // A parameter that never had a gradient has no state.
            if !self.tensors.contains_key(&first) && !self.tensors.contains_key(&second) {
                return;
            }
            let (first, second) = (
                self.take::<D>(&first, &shape),
                self.take::<D>(&second, &shape),
            );
            if let (Some(moment_1), Some(moment_2)) = (first, second) {
                let state = state_after(self.step, [moment_1, moment_2]);
                self.records
                    .insert(param.id, AdaptorRecord::from_state(state));
            }
        }
    }
    let mut visitor = Write::<B, M> {
        path: FieldPath::default(),
        tensors: &mut tensors,
        step,
        device,
        records: Records::<B, M>::default(),
        problems: Vec::new(),
    };
    model.visit(&mut visitor);
    let Write {
        records,
        mut problems,
        ..
    } = visitor;
    problems.extend(
        tensors
            .keys()
            .map(|name| format!("{name}: the model has no such parameter")),
    );
    if problems.is_empty() {
        Ok(records)
    } else {
        Err(problems)
    }
}
