//! The settings of each device: policy, seed, progress.
//!
//! Burn's op traits are associated functions without `self`, so what a linear should do lives in a
//! process-wide table keyed by device, like Burn's own random seeds. It is read once per linear, in
//! forward, on the caller's thread ([`plan`]); everything below gets a [`LinearPlan`] by value.

use std::any::TypeId;
use std::borrow::Cow;
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, LazyLock, Mutex, RwLock};

use burn_backend::{Backend, DeviceId, DeviceOps};

use crate::packed_weights::{PackedWeight, PackedWeights};
use crate::recipe::{Policy, Progress, Recipe, RecipeError, ScaleRenewal, presets};
use crate::renewal::KeptAmaxes;
use crate::rng::{RandomKey, Stream};
use crate::scope;
use crate::stats::SampleStore;

/// What one linear does, fixed when its forward is called.
#[derive(Clone, Debug)]
pub struct LinearPlan {
    /// The three GEMMs.
    pub recipe: Recipe,
    /// Name of the layer, for messages; `None` outside every scope.
    pub layer: Option<Arc<str>>,
    /// Seed of the device.
    pub seed: u64,
    /// Optimizer step of the run.
    pub step: u64,
    /// Micro-batch of the step, see [`micro_batch`](crate::micro_batch).
    pub micro_batch: u32,
    /// The weight in packed form, where it is not to be quantized from the tensor.
    pub weight: Option<Arc<PackedWeight>>,
    /// Whether operands and GEMMs are sampled.
    pub sampled: bool,
    /// What becomes of the amaxes that are taken.
    pub amaxes: TakenAmaxes,
}

/// What becomes of an amax behind a tensor scale that is taken of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenAmaxes {
    /// It is forgotten.
    Forgotten,
    /// It is kept for later steps, by layer and operand.
    Kept,
}

impl LinearPlan {
    /// The key of the random bits of one operand.
    pub(crate) fn key(&self, stream: Stream) -> RandomKey {
        RandomKey {
            seed: self.seed,
            step: self.step,
            micro_batch: self.micro_batch,
            stream,
        }
    }

    /// The plan of a forward: where no backward follows, as in validation, no amax is kept.
    pub(crate) fn of_forward(&self, backward_follows: bool) -> Cow<'_, Self> {
        if backward_follows || self.amaxes == TakenAmaxes::Forgotten {
            return Cow::Borrowed(self);
        }
        Cow::Owned(Self {
            amaxes: TakenAmaxes::Forgotten,
            ..self.clone()
        })
    }

    /// How messages name the layer.
    pub(crate) fn layer_name(&self) -> &str {
        self.layer
            .as_deref()
            .unwrap_or("(a linear outside every layer scope)")
    }
}

/// What a device was told.
#[derive(Clone, Debug)]
struct Settings {
    policy: Arc<Policy>,
    seed: u64,
    progress: Progress,
    watch: bool,
    /// Which steps are sampled.
    sampling: Option<NonZeroU64>,
    packed: PackedWeights,
}

impl Default for Settings {
    /// Quantizes as NVIDIA's recipe does: `Nvfp4<B>` means NVFP4 without further ado.
    fn default() -> Self {
        Self {
            policy: Arc::new(Policy::uniform(presets::NVIDIA)),
            seed: 0,
            progress: Progress { step: 0, total: 0 },
            watch: false,
            sampling: None,
            packed: PackedWeights::default(),
        }
    }
}

pub(crate) type Key = (TypeId, DeviceId);

static SETTINGS: LazyLock<RwLock<HashMap<Key, Settings>>> = LazyLock::new(RwLock::default);

/// The first non-finite operand seen on each watched device.
static NON_FINITE: LazyLock<RwLock<HashMap<Key, NonFinite>>> = LazyLock::new(RwLock::default);

pub(crate) fn key<B: Backend>(device: &B::Device) -> Key {
    (TypeId::of::<B::Device>(), device.id())
}

fn read<B: Backend, R>(device: &B::Device, f: impl FnOnce(&Settings) -> R) -> R {
    let table = SETTINGS
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    match table.get(&key::<B>(device)) {
        Some(settings) => f(settings),
        None => f(&Settings::default()),
    }
}

fn update<B: Backend>(device: &B::Device, f: impl FnOnce(&mut Settings)) {
    let mut table = SETTINGS
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    f(table.entry(key::<B>(device)).or_default());
}

/// Sets the policy that the linears on `device` follow from now on.
///
/// Devices of `Nvfp4<Autodiff<B>>`, `Nvfp4<B>` and `B` are the same device.
///
/// # Errors
/// [`RecipeError`] if the policy has a combination without an arithmetic or a broken pattern.
pub fn set_policy<B: Backend>(device: &B::Device, policy: Policy) -> Result<(), RecipeError> {
    policy.validate()?;
    update::<B>(device, |settings| settings.policy = Arc::new(policy));
    Ok(())
}

/// The policy of `device`; NVIDIA's recipe everywhere until another is set.
pub fn policy<B: Backend>(device: &B::Device) -> Arc<Policy> {
    read::<B, _>(device, |settings| settings.policy.clone())
}

/// Sets the seed of stochastic rounding, as `Backend::seed` of a decorated backend does.
pub fn set_seed<B: Backend>(device: &B::Device, seed: u64) {
    update::<B>(device, |settings| settings.seed = seed);
}

/// The seed of stochastic rounding on `device`.
pub fn seed<B: Backend>(device: &B::Device) -> u64 {
    read::<B, _>(device, |settings| settings.seed)
}

/// Tells `device` how far the run is: the policy may depend on it, and stochastic rounding draws
/// other bits at another step.
pub fn set_progress<B: Backend>(device: &B::Device, progress: Progress) {
    update::<B>(device, |settings| settings.progress = progress);
}

/// How far the run on `device` is, as it was told last.
pub fn progress<B: Backend>(device: &B::Device) -> Progress {
    read::<B, _>(device, |settings| settings.progress)
}

/// Has the linears on `device` whose layers have a packed weight multiply that, as it is, wherever
/// their recipe quantizes the weight of fprop and no backward follows.
///
/// The weight tensor of such a layer says the shape and is not read. An empty set ends it.
pub fn set_packed_weights<B: Backend>(device: &B::Device, weights: PackedWeights) {
    update::<B>(device, |settings| settings.packed = weights);
}

/// Resolves what a linear called here and now does.
pub(crate) fn plan<B: Backend>(device: &B::Device) -> LinearPlan {
    let micro_batch = scope::current_micro_batch();
    scope::with_current(|layer, precision| {
        read::<B, _>(device, |settings| {
            let recipe =
                precision.unwrap_or_else(|| settings.policy.resolve(layer, settings.progress));
            let weight = layer.filter(|_| recipe.fprop.rhs.is_quantized());
            let step = settings.progress.step;
            let renewal = recipe.scale_renewal;
            LinearPlan {
                recipe,
                amaxes: match renewal {
                    ScaleRenewal::EverySteps(_) if layer.is_some() => TakenAmaxes::Kept,
                    ScaleRenewal::EverySteps(_) | ScaleRenewal::EveryUse => TakenAmaxes::Forgotten,
                },
                layer: layer.map(Arc::from),
                seed: settings.seed,
                step,
                micro_batch,
                weight: weight.and_then(|layer| settings.packed.get(layer)),
                sampled: settings.sampling.is_some_and(|every| step % every == 0),
            }
        })
    })
}

static KEPT_AMAXES: LazyLock<Mutex<HashMap<Key, KeptAmaxes>>> = LazyLock::new(Mutex::default);

/// Hands the amaxes that `device` keeps to `f`.
pub(crate) fn with_kept_amaxes<B: Backend, R>(
    device: &B::Device,
    f: impl FnOnce(&mut KeptAmaxes) -> R,
) -> R {
    let mut table = KEPT_AMAXES
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    f(table.entry(key::<B>(device)).or_default())
}

static SAMPLES: LazyLock<Mutex<HashMap<Key, SampleStore>>> = LazyLock::new(Mutex::default);

/// See [`crate::stats::set_sampling`].
pub(crate) fn set_sampling<B: Backend>(device: &B::Device, every: Option<NonZeroU64>) {
    update::<B>(device, |settings| settings.sampling = every);
}

/// Hands the samples of `device` to `f`.
pub(crate) fn with_samples<B: Backend, R>(
    device: &B::Device,
    f: impl FnOnce(&mut SampleStore) -> R,
) -> R {
    let mut table = SAMPLES
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    f(table.entry(key::<B>(device)).or_default())
}

/// An operand that held NaN or infinity when it was quantized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{layer}: {operand} holds NaN or infinity")]
pub struct NonFinite {
    /// Layer name.
    pub layer: String,
    /// Which operand of which GEMM, e.g. `dgrad.lhs`.
    pub operand: &'static str,
}

/// Asks a device what it found; see [`set_probe`].
type Probe = Box<dyn Fn() -> Option<NonFinite> + Send + Sync>;

static PROBES: LazyLock<RwLock<HashMap<Key, Probe>>> = LazyLock::new(RwLock::default);

/// Has [`take_non_finite`] ask an engine whose findings stay in the device's memory.
#[cfg(feature = "cubecl")]
pub(crate) fn set_probe<B: Backend>(device: &B::Device, probe: Probe) {
    let mut probes = PROBES
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    probes.insert(key::<B>(device), probe);
}

/// Starts or stops looking for NaN and infinity in the operands that are quantized on `device`.
///
/// Costs one pass over each operand.
pub fn set_watch<B: Backend>(device: &B::Device, watch: bool) {
    update::<B>(device, |settings| settings.watch = watch);
}

pub(crate) fn is_watched<B: Backend>(device: &B::Device) -> bool {
    read::<B, _>(device, |settings| settings.watch)
}

/// Notes a non-finite operand; the first one since the last [`take_non_finite`] is kept, because
/// everything after it is a consequence.
pub(crate) fn report_non_finite<B: Backend>(device: &B::Device, found: NonFinite) {
    let mut table = NON_FINITE
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    table.entry(key::<B>(device)).or_insert(found);
}

/// The first non-finite operand since the last call, if [`set_watch`] is on.
///
/// Waits for a device that quantizes in its own memory.
pub fn take_non_finite<B: Backend>(device: &B::Device) -> Option<NonFinite> {
    let mut table = NON_FINITE
        .write()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let seen = table.remove(&key::<B>(device));
    drop(table);
    let probes = PROBES
        .read()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(probe) = probes.get(&key::<B>(device)) else {
        return seen;
    };
    // Operations that a backend has only recorded so far count as well. A device that cannot be
    // waited for has failed, and whatever reads a result next says how.
    let _ = B::sync(device);
    let found = probe();
    seen.or(found)
}
