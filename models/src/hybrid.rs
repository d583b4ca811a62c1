//! The hybrid language model: `embed -> blocks -> norm_f -> lm_head`.
//!
//! `h = E[ids]`; per block `h = h + mixer(norm(h))`; `logits = lm_head(norm_f(h))` in f32.
//! Embedding and `lm_head` are separate matrices. Module paths are the names of the parameters
//! ([`crate::config::params`]) and, for linear layers, the names that precision policies match.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Int, Tensor, TensorData, module};
use burn_hybrid_ops::{HybridEngine, ops};

use crate::config::params::ParamSpec;
use crate::config::{DtLimit, HybridConfig, Residual};
use crate::nn::linear::Linear;
use crate::nn::norm::RmsNorm;
use crate::nn::pass::{Observer, Pass};
use crate::nn::source::ParamSource;
use crate::nn::wide;
use block::{Block, Mixer};
use cache::Cache;
use field_path::FieldPath;
use step_memory::StepMemory;

pub(crate) mod field_path;
pub mod cache;
pub mod block;
pub mod init;
pub mod step_memory;

/// A hybrid language model.
#[derive(Module, Debug)]
pub struct HybridLm<B: Backend> {
    /// `[vocab, d_model]`.
    pub embeddings: Embedding<B>,
    /// The blocks, first to last.
    pub layers: Vec<Block<B>>,
    /// Before `lm_head`.
    pub norm_f: RmsNorm<B>,
    /// `d_model -> vocab`.
    pub lm_head: Linear<B>,
    #[module(skip)]
    residual: Residual,
    #[module(skip)]
    activations: Option<DType>,
    #[module(skip)]
    step_memory: StepMemory,
}

/// The token embedding.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[vocab, d_model]`.
    pub weight: Param<Tensor<B, 2>>,
}

/// One parameter of a model, as an optimizer wants to know it.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamInfo {
    /// What gradients and optimizer states are filed under.
    pub id: ParamId,
    /// Module path.
    pub name: String,
    /// Shape in Burn's layout.
    pub shape: Vec<usize>,
    /// Whether weight decay applies ([`ParamSpec::decays`]).
    pub decays: bool,
}

impl<B: Backend> HybridLm<B> {
    /// Builds the model of a checked configuration from values that a closure provides.
    ///
    /// # Panics
    /// If the closure answers with another shape than it was asked for.
    pub(crate) fn build(
        config: &HybridConfig,
        device: &B::Device,
        values: &mut dyn FnMut(&ParamSpec) -> TensorData,
    ) -> Self {
        let mut source = ParamSource::new(config.params(), device, values);
        let blocks = config.pattern.iter().enumerate();
        let model = Self {
            embeddings: Embedding {
                weight: source.take("embeddings.weight"),
            },
            layers: blocks
                .map(|(i, kind)| Block::new(&mut source, i, kind, config))
                .collect(),
            norm_f: RmsNorm::new(&mut source, "norm_f", config.norm_eps),
            lm_head: Linear::new(&mut source, "lm_head"),
            residual: config.residual,
            activations: None,
            step_memory: StepMemory::default(),
        };
        assert!(
            source.left_over().is_empty(),
            "no module has {:?}",
            source.left_over()
        );
        model
    }

    /// The same model with activations of this dtype instead of that of its matrices.
    ///
    /// f32 matrices under bf16 activations need a backend whose `linear` mixes dtypes (NVFP4).
    pub fn with_activations(self, dtype: DType) -> Self {
        Self {
            activations: Some(dtype),
            ..self
        }
    }

    /// The same model, of which a training step keeps this.
    pub fn with_step_memory(self, step_memory: StepMemory) -> Self {
        Self {
            step_memory,
            ..self
        }
    }

    /// What a training step keeps.
    pub fn step_memory(&self) -> StepMemory {
        self.step_memory
    }

    /// The same weights with other bounds of `dt`, see [`DtLimit`].
    pub fn with_dt_limit(mut self, limit: DtLimit) -> Self {
        for layer in &mut self.layers {
            if let Mixer::Mamba(mamba) = &mut layer.mixer {
                mamba.dt_limit = limit;
            }
        }
        self
    }

    /// Dtype of the activations.
    pub fn activation_dtype(&self) -> DType {
        self.activations
            .unwrap_or_else(|| self.embeddings.weight.val().dtype())
    }

    /// The same model with every matrix in this dtype; vectors stay as they are.
    ///
    /// For inference in bf16 on a plain backend; for training keep f32 master weights.
    pub fn cast_matrices(self, dtype: DType) -> Self {
        self.map(&mut CastMatrices { dtype })
    }

    /// All parameters, in module order.
    pub fn parameters(&self) -> Vec<ParamInfo> {
        let mut list = ListParams {
            path: FieldPath::default(),
            found: Vec::new(),
        };
        self.visit(&mut list);
        list.found
    }
}

impl<B: HybridEngine> HybridLm<B> {
    /// Logits in f32: `[batch, seq]` to `[batch, seq, vocab]`.
    pub fn forward(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.logits(self.forward_hidden(ids))
    }

    /// What `lm_head` sees: `[batch, seq]` to `[batch, seq, d_model]`, in the activation dtype.
    pub fn forward_hidden(&self, ids: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        self.run(ids, None, Pass::new(self.activation_dtype()))
    }

    /// Logits of a padded batch. `tokens`: `[batch, seq]`, true at real tokens.
    ///
    /// Each row gets the logits that it would get alone, without its padding in front; logits at
    /// padding mean nothing.
    pub fn forward_padded(
        &self,
        ids: Tensor<B, 2, Int>,
        tokens: Tensor<B, 2, Bool>,
    ) -> Tensor<B, 3> {
        let pass = Pass::new(self.activation_dtype()).with_tokens(tokens);
        self.logits(self.run(ids, None, pass))
    }

    /// [`Self::forward`] that shows intermediate values to `observer`, in the order of computation:
    ///
    /// `embed`; per block i of a Mamba-2 mixer `layers.{i}.mixer.{in_proj, conv_silu, dt, scan,
    /// gate, gated_norm}`; of every mixer its output `layers.{i}.mixer`; after every block the
    /// residual stream `layers.{i}`; `norm_f`.
    pub fn forward_observed<'a>(
        &self,
        ids: Tensor<B, 2, Int>,
        observer: &'a mut Observer<'a, B>,
    ) -> Tensor<B, 3> {
        let pass = Pass::new(self.activation_dtype()).with_observer(observer);
        self.logits(self.run(ids, None, pass))
    }

    /// Logits of tokens that follow those in `cache`, which holds these too afterwards:
    /// `[batch, seq]` to `[batch, seq, vocab]`.
    ///
    /// The logits are those of one [`Self::forward`] over all tokens, up to rounding.
    ///
    /// # Panics
    /// If the cache is another model's or another batch size's.
    pub fn extend(&self, ids: Tensor<B, 2, Int>, cache: &mut Cache<B>) -> Tensor<B, 3> {
        self.logits(self.extend_hidden(ids, None, cache))
    }

    /// [`Self::extend`] without `lm_head`: `[batch, seq]` to `[batch, seq, d_model]`, what
    /// [`Self::logits`] takes. `tokens`: `[batch, seq]`, true at real tokens; `None`: all are.
    ///
    /// # Panics
    /// As [`Self::extend`].
    pub fn extend_hidden(
        &self,
        ids: Tensor<B, 2, Int>,
        tokens: Option<Tensor<B, 2, Bool>>,
        cache: &mut Cache<B>,
    ) -> Tensor<B, 3> {
        let pass = cache.pass(self.activation_dtype(), &ids, tokens);
        self.run(ids, Some(cache), pass)
    }

    fn run(
        &self,
        ids: Tensor<B, 2, Int>,
        mut cache: Option<&mut Cache<B>>,
        mut pass: Pass<'_, B>,
    ) -> Tensor<B, 3> {
        let mut h = self.embed(ids, pass.dtype());
        pass.observe("embed", || h.clone());
        for (index, layer) in self.layers.iter().enumerate() {
            let name = format!("layers.{index}");
            let memory = cache.as_deref_mut().map(|cache| cache.memory(index));
            h = pass.within(&name, |pass| layer.forward(h, memory, pass));
            pass.observe(&name, || h.clone());
        }
        let hidden = self.norm_f.forward(h, pass.dtype());
        pass.observe("norm_f", || hidden.clone());
        hidden
    }

    /// The residual stream before the first block, of activations of this dtype.
    pub(crate) fn embed(&self, ids: Tensor<B, 2, Int>, activations: DType) -> Tensor<B, 3> {
        let weight = self.embeddings.weight.val();
        let dtype = wide(weight.dtype());
        let embedded = ops::embedding(&weight, &ids, activations)
            .unwrap_or_else(|| module::embedding(weight, ids).cast(activations));
        match self.residual {
            Residual::Activations => embedded,
            Residual::F32 => embedded.cast(dtype),
        }
    }

    /// Logits in f32 of what [`Self::forward_hidden`] and [`Self::extend_hidden`] give:
    /// `[batch, seq, d_model]` to `[batch, seq, vocab]`.
    pub fn logits(&self, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let logits = self.lm_head.forward(hidden);
        let dtype = wide(logits.dtype());
        logits.cast(dtype)
    }
}

/// Casts parameters of rank 2 and more.
struct CastMatrices {
    dtype: DType,
}

impl<B: Backend> ModuleMapper<B> for CastMatrices {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if D == 1 {
            param
        } else {
            param.map(|tensor| tensor.cast(self.dtype))
        }
    }
}

/// Collects parameters with their paths.
struct ListParams {
    path: FieldPath,
    found: Vec<ParamInfo>,
}

impl<B: Backend> ModuleVisitor<B> for ListParams {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.found.push(ParamInfo {
            id: param.id,
            name: self.path.name(),
            shape: param.lazy_shape().to_vec(),
            decays: D > 1,
        });
    }
}
