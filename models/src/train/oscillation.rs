//! OsciReset in a run: which weights are watched, what follows an update, what a checkpoint keeps.
//!
//! A step of the schedule is an update of the optimizer: a step that is left out moves no weight.
//! So all that is watched changes with the model, and an update is enough to know whether a window
//! is open and under which recipe. What the schedule and a trace are: [`burn_nvfp4::oscillation`].
//!
//! Of a trace a checkpoint keeps the two paths. The weight after the last update is the parameter,
//! and its quantized value follows from it.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{ElementConversion, Tensor, TensorData, TensorPrimitive};
use burn_hybrid_ops::{HybridEngine, TrainingEngine};
use burn_nvfp4::oscillation::{OsciAction, OsciReset, WeightTrace, WindowEnd, is_traced};
use burn_nvfp4::recipe::{OperandSpec, Policy, Progress};
use serde::{Deserialize, Serialize};

use crate::checkpoint::run::NamedTensors;
use crate::hybrid::field_path::FieldPath;

use super::params::fitting;

/// Beginning of the names of what a checkpoint keeps of traces.
const PREFIX: &str = "oscillation.";

/// Which weights of a run are watched, and when.
#[derive(Clone, Debug)]
pub struct WatchedWeights {
    /// Windows, in updates of the optimizer.
    pub schedule: OsciReset,
    /// Which layers are quantized, and how.
    pub policy: Policy,
    /// The linears of the model.
    pub layers: BTreeSet<String>,
    /// Steps of the run, for a policy that depends on progress.
    pub total: u64,
}

impl WatchedWeights {
    /// How fprop reads a parameter as the window of `update` begins; `None` if it is not watched.
    fn spec(&self, parameter: &str, update: u64) -> Option<OperandSpec> {
        let layer = parameter.strip_suffix(".weight")?;
        let begin = self.schedule.window_of(update)?;
        if !self.layers.contains(layer) {
            return None;
        }
        let progress = Progress {
            step: begin,
            total: self.total,
        };
        let spec = self.policy.resolve(Some(layer), progress).fprop.rhs;
        is_traced(&spec).then_some(spec)
    }

    /// What follows the last of so many updates.
    fn action_after(&self, updates: u64) -> (u64, OsciAction) {
        match updates.checked_sub(1) {
            Some(update) => (update, self.schedule.action(update)),
            None => (0, OsciAction::Rest),
        }
    }
}

/// What a window found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Oscillation {
    /// Weights that were watched.
    pub watched: u64,
    /// Those that oscillate.
    pub oscillating: u64,
    /// Those of them that were set to the middle of their bin.
    pub reset: u64,
    /// Share that oscillates in each layer where any does.
    pub layers: BTreeMap<String, f64>,
}

/// The traces of a run.
#[derive(Debug)]
pub(crate) struct Traces<B: HybridEngine> {
    weights: WatchedWeights,
    /// By parameter; empty between windows.
    open: BTreeMap<String, WeightTrace<B>>,
}

/// Traces of the weights of a model that trains on `B`.
pub(crate) type TracesOf<B> = Traces<<B as burn::tensor::backend::AutodiffBackend>::InnerBackend>;

type Primitive<B> = <B as burn::tensor::backend::BackendTypes>::FloatTensorPrimitive;

impl<B: HybridEngine> Traces<B> {
    /// Traces as a checkpoint has them, of a model after so many updates; those tensors are taken
    /// out of `carried`.
    ///
    /// # Errors
    /// Every missing, misshapen or unexpected tensor.
    pub(crate) fn restore<T: TrainingEngine<InnerBackend = B>, M: AutodiffModule<T>>(
        weights: WatchedWeights,
        model: &M,
        updates: u64,
        carried: &mut NamedTensors,
    ) -> Result<Self, Vec<String>> {
        let (update, action) = weights.action_after(updates);
        let is_open = matches!(action, OsciAction::Begin | OsciAction::Observe);
        let (mut open, mut problems) = (BTreeMap::new(), Vec::new());
        visit(model, |name, weight: Primitive<B>| {
            let Some(spec) = weights.spec(&name, update).filter(|_| is_open) else {
                return;
            };
            let shape = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(weight.clone()));
            let (shape, device) = (shape.dims(), shape.device());
            let mut take = |path: &str| {
                let name = key(&name, path);
                match fitting(&name, &shape, carried.remove(&name)) {
                    Ok(data) => {
                        let tensor = Tensor::<B, 2>::from_data(data, &device);
                        Some(tensor.into_primitive().tensor())
                    }
                    Err(problem) => {
                        problems.push(problem);
                        None
                    }
                }
            };
            let (path, quantized_path) = (take(PATHS[0]), take(PATHS[1]));
            if let (Some(path), Some(quantized_path)) = (path, quantized_path) {
                let begun = begin::<B>(weight, spec);
                let trace = WeightTrace {
                    path,
                    quantized_path,
                    ..begun
                };
                open.insert(name, trace);
            }
        });
        let left = carried.keys().filter(|name| name.starts_with(PREFIX));
        problems.extend(left.map(|name| format!("{name}: no such weight is watched")));
        if problems.is_empty() {
            Ok(Self { weights, open })
        } else {
            Err(problems)
        }
    }

    /// Follows an update. At the end of a window it says what was found, and the model with resets
    /// if there are any.
    pub(crate) fn follow<T: TrainingEngine<InnerBackend = B>, M: AutodiffModule<T>>(
        &mut self,
        model: M,
        updates: u64,
    ) -> Option<(Oscillation, Option<M>)> {
        let (update, action) = self.weights.action_after(updates);
        let Self { weights, open } = self;
        match action {
            OsciAction::Rest => None,
            OsciAction::Begin => {
                open.clear();
                visit(&model, |name, weight| {
                    if let Some(spec) = weights.spec(&name, update) {
                        open.insert(name, begin::<B>(weight, spec));
                    }
                });
                None
            }
            OsciAction::Observe => {
                self.observe(&model, update);
                None
            }
            OsciAction::Reset => {
                self.observe(&model, update);
                Some(self.close(model))
            }
        }
    }

    fn observe<T: TrainingEngine<InnerBackend = B>, M: AutodiffModule<T>>(
        &mut self,
        model: &M,
        update: u64,
    ) {
        let Self { weights, open } = self;
        visit(model, |name, weight: Primitive<B>| {
            if let (Some(trace), Some(spec)) = (open.get_mut(&name), weights.spec(&name, update)) {
                trace.add(weight.clone(), B::weight_values(weight, spec));
            }
        });
    }

    /// Counts, and resets if the schedule says so.
    fn close<T: TrainingEngine<InnerBackend = B>, M: AutodiffModule<T>>(
        &mut self,
        model: M,
    ) -> (Oscillation, Option<M>) {
        let OsciReset {
            threshold, at_end, ..
        } = self.weights.schedule;
        let mut found = Oscillation {
            watched: 0,
            oscillating: 0,
            reset: 0,
            layers: BTreeMap::new(),
        };
        for (name, trace) in &self.open {
            let ratio = Tensor::<B, 2>::from_primitive(TensorPrimitive::Float(trace.ratio()));
            let elements = ratio.shape().num_elements() as u64;
            let reach = ratio.greater_equal_elem(threshold).int().sum();
            let reach: i64 = reach.into_scalar().elem();
            let reach = reach.unsigned_abs();
            found.watched += elements;
            found.oscillating += reach;
            if reach > 0 {
                let layer = name.trim_end_matches(".weight").to_owned();
                let share = reach as f64 / elements as f64;
                found.layers.insert(layer, share);
            }
        }
        let open = std::mem::take(&mut self.open);
        if at_end == WindowEnd::Count || found.oscillating == 0 {
            return (found, None);
        }
        found.reset = found.oscillating;
        let model = model.map(&mut Change::<T, _> {
            path: FieldPath::default(),
            change: |name: &str, weight| match open.get(name) {
                Some(trace) => trace.reset(weight, threshold),
                None => weight,
            },
            backend: std::marker::PhantomData,
        });
        (found, Some(model))
    }

    /// Copies of the open traces, to be read on any thread.
    pub(crate) fn snapshot(&self) -> TraceSnapshot<B> {
        let paths = |(name, trace): (&String, &WeightTrace<B>)| {
            let paths = [&trace.path, &trace.quantized_path];
            let tensor =
                |path: &Primitive<B>| Tensor::from_primitive(TensorPrimitive::Float(path.clone()));
            (name.clone(), paths.map(tensor))
        };
        TraceSnapshot(self.open.iter().map(paths).collect())
    }
}

/// Both paths of every open trace.
#[derive(Debug, Default)]
pub(crate) struct TraceSnapshot<B: HybridEngine>(Vec<(String, [Tensor<B, 2>; 2])>);

impl<B: HybridEngine> TraceSnapshot<B> {
    /// What a checkpoint keeps.
    pub(crate) fn into_tensors(self) -> NamedTensors {
        let named = |(name, paths): (String, [Tensor<B, 2>; 2])| {
            let keys = PATHS.map(|path| key(&name, path));
            keys.into_iter()
                .zip(paths.map(Tensor::into_data))
                .collect::<Vec<(String, TensorData)>>()
        };
        self.0.into_iter().flat_map(named).collect()
    }
}

/// What the two paths of a weight are called.
const PATHS: [&str; 2] = ["path", "quantized_path"];

fn key(parameter: &str, path: &str) -> String {
    format!("{PREFIX}{parameter}.{path}")
}

fn begin<B: HybridEngine>(weight: Primitive<B>, spec: OperandSpec) -> WeightTrace<B> {
    WeightTrace::begin(weight.clone(), B::weight_values(weight, spec))
}

/// Hands every matrix to `each`, by name and without autodiff.
fn visit<B: TrainingEngine, M: AutodiffModule<B>>(
    model: &M,
    each: impl FnMut(String, Primitive<B::InnerBackend>),
) {
    struct Visit<B, F> {
        path: FieldPath,
        each: F,
        backend: std::marker::PhantomData<B>,
    }
    impl<B, F> ModuleVisitor<B> for Visit<B, F>
    where
        B: TrainingEngine,
        F: FnMut(String, Primitive<B::InnerBackend>),
    {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            if D == 2 {
                let value = param.val().inner().into_primitive().tensor();
                (self.each)(self.path.name(), value);
            }
        }
    }
    model.visit(&mut Visit::<B, _> {
        path: FieldPath::default(),
        each,
        backend: std::marker::PhantomData,
    });
}

/// Puts other values in the place of matrices.
struct Change<B, F> {
    path: FieldPath,
    change: F,
    backend: std::marker::PhantomData<B>,
}

impl<B, F> ModuleMapper<B> for Change<B, F>
where
    B: TrainingEngine,
    F: FnMut(&str, Primitive<B::InnerBackend>) -> Primitive<B::InnerBackend>,
{
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if D != 2 {
            return param;
        }
        let (id, tensor, mapper) = param.consume();
        let requires_grad = tensor.is_require_grad();
        let value = tensor.inner().into_primitive().tensor();
        let value = (self.change)(&self.path.name(), value);
        let value = Tensor::from_primitive(TensorPrimitive::Float(value));
        let tensor = Tensor::from_inner(value).set_require_grad(requires_grad);
        Param::from_mapped_value(id, tensor, mapper)
    }
}
