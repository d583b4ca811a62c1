//! One AdamW update of a model: by kernels that share launches where the backend has them, by
//! burn's AdamW elsewhere.

use std::collections::{BTreeMap, HashMap};

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::record::AdaptorRecord;
use burn::optim::{AdamWState, GradientsParams, SimpleOptimizer};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive};
use burn_hybrid_ops::{TrainingEngine, ops};

use super::{GroupedAdamW, decays, single, state_after};
use crate::hybrid::field_path::FieldPath;

/// Has the optimizer multiply the gradients by `factor` as it reads them, which spares a pass over
/// them. The factor is one more entry of `grads`, so it cannot meet other gradients; optimizers
/// other than [`GroupedAdamW`] do not know it.
pub fn scale_at_update<B: TrainingEngine>(
    grads: &mut GradientsParams,
    factor: f64,
    device: &B::Device,
) {
    if factor != 1.0 {
        let factor = TensorData::from([single(factor)]);
        let factor = Tensor::<B::InnerBackend, 1>::from_data(factor, (device, DType::F32));
        grads.register(factor_id(), factor);
    }
}

/// The place of the factor among gradients, that of no parameter.
fn factor_id() -> ParamId {
    ParamId::from(u64::MAX)
}

/// Updates every parameter that has a gradient.
pub(super) fn update<B: TrainingEngine, M: AutodiffModule<B>>(
    optimizer: &mut GroupedAdamW<B, M>,
    lr: f64,
    module: M,
    mut grads: GradientsParams,
) -> M {
    let factor = grads.remove::<B::InnerBackend, 1>(factor_id());
    let mut collect = Collect {
        optimizer,
        path: FieldPath::default(),
        grads: &mut grads,
        groups: BTreeMap::new(),
    };
    module.visit(&mut collect);
    let mut updated = HashMap::new();
    for ((decays, time), states) in collect.groups {
        let (ids, states): (Vec<_>, Vec<_>) = states.into_iter().unzip();
        let numbers = optimizer.numbers(lr, decays, time);
        let states = ops::adamw::<B::InnerBackend>(states, factor.clone(), numbers);
        let states = states.into_iter().map(|state| Updated { time, state });
        updated.extend(ids.into_iter().zip(states));
    }
    module.map(&mut PutBack {
        optimizer,
        path: FieldPath::default(),
        grads,
        factor,
        updated,
        lr,
    })
}

/// `[parameter, first moment, second moment]` after an update.
struct Updated<B: TrainingEngine> {
    /// Updates of the parameter, this one included.
    time: usize,
    state: [FloatTensor<B::InnerBackend>; 3],
}

/// A parameter, its moments and its gradient, without their dimensions.
type Job<B> = (ParamId, [FloatTensor<B>; 4]);

/// Takes out what kernels update, in groups with the same numbers: whether they decay, and how many
/// updates they have had, this one included.
struct Collect<'a, B: TrainingEngine, M: AutodiffModule<B>> {
    optimizer: &'a mut GroupedAdamW<B, M>,
    path: FieldPath,
    grads: &'a mut GradientsParams,
    groups: BTreeMap<(bool, usize), Vec<Job<B::InnerBackend>>>,
}

impl<B: TrainingEngine, M: AutodiffModule<B>> ModuleVisitor<B> for Collect<'_, B, M> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val().inner();
        if !ops::has_adamw(&value) {
            return;
        }
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) else {
            return;
        };
        let record = self.optimizer.records.remove(&param.id);
        let (time, moments) = match record.map(AdaptorRecord::into_state) {
            Some(AdamWState { momentum }) => {
                (momentum.time, [momentum.moment_1, momentum.moment_2])
            }
            None => (0, [value.zeros_like(), value.zeros_like()]),
        };
        let [moment_1, moment_2] = moments;
        let state = [value, moment_1, moment_2, grad];
        let state = state.map(|tensor| tensor.into_primitive().tensor());
        let group = (decays(&self.path.name(), D), time + 1);
        self.groups
            .entry(group)
            .or_default()
            .push((param.id, state));
    }
}

/// A parameter and its state, as burn's optimizers return them.
type WithState<B, const D: usize> = (Tensor<B, D>, Option<AdamWState<B, D>>);

/// Puts back what kernels have updated, and updates what is left.
struct PutBack<'a, B: TrainingEngine, M: AutodiffModule<B>> {
    optimizer: &'a mut GroupedAdamW<B, M>,
    path: FieldPath,
    grads: GradientsParams,
    factor: Option<Tensor<B::InnerBackend, 1>>,
    updated: HashMap<ParamId, Updated<B>>,
    lr: f64,
}

impl<B: TrainingEngine, M: AutodiffModule<B>> PutBack<'_, B, M> {
    /// The parameter and its state after the update; `None` without a gradient.
    fn updated<const D: usize>(
        &mut self,
        id: ParamId,
        tensor: &Tensor<B, D>,
    ) -> Option<WithState<B::InnerBackend, D>> {
        if let Some(Updated { time, state }) = self.updated.remove(&id) {
            let tensors = state.map(|tensor| {
                Tensor::<B::InnerBackend, D>::from_primitive(TensorPrimitive::Float(tensor))
            });
            let [param, moment_1, moment_2] = tensors;
            let state = state_after(time, [moment_1, moment_2]);
            return Some((param, Some(state)));
        }
        let mut grad = self.grads.remove::<B::InnerBackend, D>(id)?;
        if let Some(factor) = &self.factor {
            let factor = factor.clone().cast(grad.dtype());
            grad = grad * factor.reshape([1; D]);
        }
        let group = if decays(&self.path.name(), D) {
            &self.optimizer.decayed
        } else {
            &self.optimizer.undecayed
        };
        let record = self.optimizer.records.remove(&id);
        let state = record.map(AdaptorRecord::into_state);
        Some(group.step(self.lr, tensor.clone().inner(), grad, state))
    }
}

impl<B: TrainingEngine, M: AutodiffModule<B>> ModuleMapper<B> for PutBack<'_, B, M> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, tensor, mapper) = param.consume();
        let Some((updated, state)) = self.updated(id, &tensor) else {
            return Param::from_mapped_value(id, tensor, mapper);
        };
        if let Some(state) = state {
            let record = AdaptorRecord::from_state(state);
            self.optimizer.records.insert(id, record);
        }
        let updated = Tensor::from_inner(updated).set_require_grad(tensor.is_require_grad());
        Param::from_mapped_value(id, updated, mapper)
    }
}
