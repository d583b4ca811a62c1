//! AdamW with decay groups, on burn's own AdamW arithmetic.
//!
//! Weight decay goes to matrices, embeddings and convolution weights, not to 1-D parameters (norms,
//! `A_log`, `D`, `dt_bias`) or biases: Megatron's rule (nemotron-h §1.5). The state is two moments
//! per parameter, in the parameter's dtype (f32), and one step count.
//!
//! burn's `OptimizerAdaptor` has one decay for all and keeps its state by random parameter ids;
//! here the state can be taken out and put back by name, exactly.

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::optim::adaptor::OptimizerAdaptor;
use burn::optim::record::AdaptorRecord;
use burn::optim::{
    AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, GradientsParams, MultiGradientsParams,
    Optimizer, SimpleOptimizer,
};
use burn::tensor::Tensor;
use burn_hybrid_ops::op::AdamW as Numbers;
use burn_hybrid_ops::{HybridEngine, TrainingEngine, ops};
use serde::{Deserialize, Serialize};

use crate::checkpoint::run::NamedTensors;
use crate::hybrid::field_path::FieldPath;

/// Numbers of AdamW and of gradient clipping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; absent: no clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
}

/// True if weight decay applies to a parameter.
pub fn decays(name: &str, rank: usize) -> bool {
    rank > 1 && name != "bias" && !name.ends_with(".bias")
}

/// burn's optimizers take their constants in f32.
#[expect(
    clippy::cast_possible_truncation,
    reason = "rounding to f32 is what is wanted"
)]
fn single(value: f64) -> f32 {
    value as f32
}

/// State of every parameter, in burn's record type.
pub(crate) type Records<B, M> = <OptimizerAdaptor<AdamW, M, B> as Optimizer<M, B>>::Record;

/// AdamW in two groups; see the module.
#[derive(Clone)]
pub struct GroupedAdamW<B: TrainingEngine, M: AutodiffModule<B>> {
    decayed: AdamW,
    undecayed: AdamW,
    config: OptimizerConfig,
    records: Records<B, M>,
}

impl<B: TrainingEngine, M: AutodiffModule<B>> std::fmt::Debug for GroupedAdamW<B, M> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("GroupedAdamW")
            .field("parameters", &self.records.len())
            .finish()
    }
}

impl<B: TrainingEngine, M: AutodiffModule<B>> GroupedAdamW<B, M> {
    /// An optimizer without history.
    pub fn new(config: &OptimizerConfig) -> Self {
        let adamw = |weight_decay| {
            AdamWConfig::new()
                .with_beta_1(single(config.beta1))
                .with_beta_2(single(config.beta2))
                .with_epsilon(single(config.epsilon))
                .with_weight_decay(single(weight_decay))
                .build()
        };
        Self {
            decayed: adamw(config.weight_decay),
            undecayed: adamw(0.0),
            config: *config,
            records: Records::<B, M>::default(),
        }
    }

    /// What the kernel computes with; the number of the update is filled in where it is known.
    fn numbers(&self, lr: f64, decays: bool) -> Numbers {
        Numbers {
            lr,
            beta1: single(self.config.beta1),
            beta2: single(self.config.beta2),
            epsilon: single(self.config.epsilon),
            weight_decay: if decays {
                single(self.config.weight_decay)
            } else {
                0.0
            },
            time: 0,
        }
    }
}

impl<B: TrainingEngine, M: AutodiffModule<B>> Optimizer<M, B> for GroupedAdamW<B, M> {
    type Record = Records<B, M>;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        module.map(&mut Update {
            optimizer: self,
            path: FieldPath::default(),
            grads,
            lr,
        })
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        let mut summed = burn::optim::GradientsAccumulator::new();
        for (grads, _device) in grads.grads {
            summed.accumulate(&module, grads);
        }
        self.step(lr, module, summed.grads())
    }

    fn to_record(&self) -> Self::Record {
        self.records.clone()
    }

    fn load_record(mut self, record: Self::Record) -> Self {
        self.records = record;
        self
    }
}

/// One AdamW update of every parameter that has a gradient.
struct Update<'a, B: TrainingEngine, M: AutodiffModule<B>> {
    optimizer: &'a mut GroupedAdamW<B, M>,
    path: FieldPath,
    grads: GradientsParams,
    lr: f64,
}

impl<B: TrainingEngine, M: AutodiffModule<B>> ModuleMapper<B> for Update<'_, B, M> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(id) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        let requires_grad = tensor.is_require_grad();
        let optimizer = &mut *self.optimizer;
        let decays = decays(&self.path.name(), D);
        let group = if decays {
            &optimizer.decayed
        } else {
            &optimizer.undecayed
        };
        let numbers = optimizer.numbers(self.lr, decays);
        let state = optimizer.records.remove(&id).map(AdaptorRecord::into_state);
        let (tensor, state) = match by_kernel(tensor.inner(), grad, state, &numbers) {
            Ok((tensor, state)) => (tensor, Some(state)),
            Err((tensor, grad, state)) => group.step(self.lr, tensor, grad, state),
        };
        if let Some(state) = state {
            optimizer
                .records
                .insert(id, AdaptorRecord::from_state(state));
        }
        let tensor = Tensor::from_inner(tensor).set_require_grad(requires_grad);
        Param::from_mapped_value(id, tensor, mapper)
    }
}

/// A parameter, its gradient, and its state if it had one: what an update takes.
type Untouched<B, const D: usize> = (Tensor<B, D>, Tensor<B, D>, Option<AdamWState<B, D>>);

/// The update in one kernel, with the arithmetic of burn's, where the backend has one.
fn by_kernel<B: HybridEngine, const D: usize>(
    param: Tensor<B, D>,
    grad: Tensor<B, D>,
    state: Option<AdamWState<B, D>>,
    numbers: &Numbers,
) -> Result<(Tensor<B, D>, AdamWState<B, D>), Untouched<B, D>> {
    if !ops::has_adamw(&param) {
        return Err((param, grad, state));
    }
    let (time, moments) = match state {
        Some(AdamWState { momentum }) => (momentum.time, [momentum.moment_1, momentum.moment_2]),
        None => (0, [param.zeros_like(), param.zeros_like()]),
    };
    let time = time + 1;
    let numbers = Numbers {
        // After 2^31 updates the bias correction has long been 1.
        time: i32::try_from(time).unwrap_or(i32::MAX),
        ..*numbers
    };
    let [moment_1, moment_2] = moments;
    let [param, moment_1, moment_2] = ops::adamw([param, moment_1, moment_2], grad, numbers);
    let momentum = AdaptiveMomentumState {
        time,
        moment_1,
        moment_2,
        max_moment_2: None,
    };
    Ok((param, AdamWState::new(momentum)))
}

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
            let problem = match self.tensors.remove(name) {
                Some(data) if data.shape.as_slice() == shape => {
                    return Some(Tensor::from_data(data, self.device));
                }
                Some(data) => {
                    format!(
                        "{name}: shape {:?}, {shape:?} expected",
                        data.shape.as_slice()
                    )
                }
                None => format!("{name}: missing, {shape:?} expected"),
            };
            self.problems.push(problem);
            None
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
                let momentum = AdaptiveMomentumState {
                    time: self.step,
                    moment_1,
                    moment_2,
                    max_moment_2: None,
                };
                let state = AdamWState::new(momentum);
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

#[cfg(test)]
mod tests {
    use super::decays;

    #[test]
    fn decay_goes_to_matrices_and_not_to_vectors_or_biases() {
        for (name, rank, expected) in [
            ("embeddings.weight", 2, true),
            ("lm_head.weight", 2, true),
            ("layers.0.mixer.in_proj.weight", 2, true),
            ("layers.0.mixer.conv1d.weight", 3, true),
            ("layers.0.mixer.conv1d.bias", 1, false),
            ("layers.0.mixer.a_log", 1, false),
            ("layers.0.mixer.d_skip", 1, false),
            ("layers.0.mixer.dt_bias", 1, false),
            ("layers.0.norm.weight", 1, false),
            ("layers.0.mixer.some.bias", 2, false),
            ("bias", 2, false),
        ] {
            assert_eq!(decays(name, rank), expected, "{name}");
        }
    }
}
