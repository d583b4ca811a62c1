//! The three GEMMs of a linear layer, run as a [`LinearPlan`] says.
//!
//! In Burn's layout, with all leading dims flattened to `tokens` so that blocks and the Hadamard
//! transform run along all of them:
//!
//! | GEMM | lhs `[m, k]` | rhs `[n, k]` | result |
//! |---|---|---|---|
//! | fprop | `X  [tokens, d_input]` | `Wᵀ [d_output, d_input]` | `Y  [tokens, d_output]` |
//! | dgrad | `dY [tokens, d_output]` | `W  [d_input, d_output]` | `dX [tokens, d_input]` |
//! | wgrad | `Xᵀ [d_input, tokens]` | `dYᵀ [d_output, tokens]` | `dW [d_input, d_output]` |
//!
//! A GEMM without a quantized operand is Burn's own op on the tensors as they came, hence the same
//! bits as without the decorator, unless the engine brings a GEMM of its own for those too. Each
//! input gets a gradient of its own dtype; a bias gradient is the sum of the unquantized `dY`.
//! Nothing here decides what is quantized: the plan does.

use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{Backend, DType, Shape, TensorMetadata};

use super::mean::{Centred, add_outer};
use super::{Lifetime, Nvfp4Engine, Operand, OperandRequest, Output, renewal, sample};
use crate::cpu::Contraction;
use crate::recipe::{OperandSpec, ScaleRenewal};
use crate::rng::{RandomKey, Stream};
use crate::runtime::LinearPlan;

mod uses;
mod weight;

pub(super) use uses::{KeptUse, KeptUses, fprop_weight_use};
use uses::{Use, dgrad_use, dgrad_weight_use, fprop_x_use, wgrad_use, wgrad_x_use};
pub(crate) use weight::pack_weight;
pub use weight::{Weight, WeightOperands};

/// What [`Nvfp4Engine::quantize_operands`] returns.
const ONE_EACH: &str = "one operand for each request";

/// Which operands backward will need: the weight if `X` has a gradient, `X` if the weight has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// No backward.
    Nothing,
    /// `W`, for dgrad.
    Weight,
    /// `X`, for wgrad.
    X,
    /// Both.
    Both,
}

impl Wanted {
    /// True if dgrad will run.
    pub const fn weight(self) -> bool {
        matches!(self, Self::Weight | Self::Both)
    }

    /// True if wgrad will run.
    pub const fn x(self) -> bool {
        matches!(self, Self::X | Self::Both)
    }

    /// The same without the weight, where that is there already.
    #[must_use]
    pub const fn without_weight(self) -> Self {
        match self {
            Self::Nothing | Self::Weight => Self::Nothing,
            Self::X | Self::Both => Self::X,
        }
    }

    /// The same without `X`, where that is there already.
    #[must_use]
    pub const fn without_x(self) -> Self {
        match self {
            Self::Nothing | Self::X => Self::Nothing,
            Self::Weight | Self::Both => Self::Weight,
        }
    }
}

/// What backward needs of forward, as dgrad and wgrad read it.
#[derive(Clone, Debug)]
pub struct Kept<B: Backend> {
    /// rhs of dgrad.
    pub weight: Option<Operand<B>>,
    /// lhs of wgrad.
    pub x: Option<Operand<B>>,
    /// Mean of `X` over tokens, f32 `[1, d_input]`, if `x` is what is left without it.
    pub x_mean: Option<FloatTensor<B>>,
}

/// Shape and dtype of a gradient: those of what it is the gradient of.
pub type Like = (Shape, DType);

/// `Y = X W + b`, and the operands that backward will need.
pub(crate) fn fprop<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    weight: Weight<B>,
    bias: Option<FloatTensor<B>>,
    plan: &LinearPlan,
    wanted: Wanted,
) -> (FloatTensor<B>, Kept<B>) {
    let plan = &*plan.of_forward(wanted != Wanted::Nothing);
    let recipe = &plan.recipe;
    let mut shape = x.shape();
    let rank = shape.num_dims();
    shape[rank - 1] = weight.shape()[1];

    let device = B::float_device(&x);
    let kept = KeptUses::new::<B>(plan, wanted, &device);
    if !recipe.fprop.is_quantized() && !B::has_own_gemm(&device) {
        let dtype = x.dtype();
        let (x_kept, x_mean) = keep_x::<B>(x.clone(), plan, kept.x);
        sample::burns_own::<B>("fprop", &x, plan);
        let (weight, weight_kept) = weight.in_high_precision(plan, kept.weight);
        let y = B::linear(
            x,
            cast::<B>(weight, dtype),
            bias.map(|bias| cast::<B>(bias, dtype)),
        );
        let kept = Kept {
            weight: weight_kept,
            x: x_kept,
            x_mean,
        };
        return (y, kept);
    }
    let output = Output {
        shape,
        dtype: x.dtype(),
        device: &device,
    };
    let (lhs, kept_x, mean) = x_of_fprop::<B>(x, plan, kept.x, weight.ready());
    // Backward and an optimizer need the tensor; what they change would not be seen in a weight
    // that comes packed.
    let comes_packed = plan.weight.as_deref();
    let comes_packed = comes_packed.filter(|_| wanted == Wanted::Nothing);
    let (rhs, kept_weight) = weight.quantize(&lhs, plan, kept.weight, comes_packed);
    let bias = match &mean {
        Some(mean) if recipe.fprop.is_quantized() => {
            Some(B::multiply_row(mean.clone(), &rhs, bias, &device))
        }
        Some(_) | None => bias,
    };
    sample::gemm::<B>("fprop", recipe.fprop, [&lhs, &rhs], plan, &device);
    let y = B::gemm(&lhs, &rhs, bias, output);
    let kept = Kept {
        weight: kept_weight,
        x_mean: mean.filter(|_| kept_x.is_some()),
        x: kept_x,
    };
    (y, kept)
}

/// lhs of fprop, what backward needs of `X`, and its mean if that is apart.
fn x_of_fprop<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    plan: &LinearPlan,
    kept: Option<KeptUse>,
    rhs: Option<&Operand<B>>,
) -> (Operand<B>, Option<Operand<B>>, Option<FloatTensor<B>>) {
    let now = fprop_x_use(plan);
    if plan.recipe.fprop.is_quantized() || !plan.recipe.keeps_means_apart() {
        let Centred { rest, mean } = Centred::<B>::new(x, plan);
        let (lhs, kept) = Shared::new(rest, now, kept).quantize(plan, rhs);
        return (lhs, kept, mean);
    }
    // fprop multiplies the tensor, backward the rest of it.
    let (kept, mean) = keep_x::<B>(x.clone(), plan, kept);
    let (lhs, _) = Shared::new(x, now, None).quantize(plan, rhs);
    (lhs, kept, mean)
}

/// What backward needs of `X` where fprop reads the tensor itself.
fn keep_x<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    plan: &LinearPlan,
    kept: Option<KeptUse>,
) -> (Option<Operand<B>>, Option<FloatTensor<B>>) {
    if kept.is_none() {
        return (None, None);
    }
    let Centred { rest, mean } = Centred::<B>::new(x, plan);
    let kept = Shared::new(rest, fprop_x_use(plan), kept).later(plan);
    (kept, mean)
}

/// `dX = dY Wᵀ` in the shape and dtype of `X`.
pub(crate) fn dgrad<B: Nvfp4Engine>(
    weight: &Operand<B>,
    dy: FloatTensor<B>,
    plan: &LinearPlan,
    like: Like,
) -> FloatTensor<B> {
    if let Some((weight, dy)) = plain_dgrad::<B>(weight, &dy, plan) {
        sample::burns_own::<B>("dgrad", &dy, plan);
        return cast::<B>(B::linear_x_backward(weight, dy), like.1);
    }
    let device = B::float_device(&dy);
    let Centred { rest, mean } = Centred::<B>::new(dy, plan);
    let dy = dgrad_use(plan).quantize::<B>(rest, plan, Lifetime::OneGemm);
    x_gradient::<B>(&dy, weight, mean, plan, output::<B>(like, &device))
}

/// The GEMM of dgrad, and the mean of `dY` through the weight.
fn x_gradient<B: Nvfp4Engine>(
    dy: &Operand<B>,
    weight: &Operand<B>,
    mean: Option<FloatTensor<B>>,
    plan: &LinearPlan,
    output: Output<'_, B>,
) -> FloatTensor<B> {
    let device = output.device;
    sample::gemm::<B>("dgrad", plan.recipe.dgrad, [dy, weight], plan, device);
    let bias = mean.map(|mean| B::multiply_row(mean, weight, None, device));
    B::gemm(dy, weight, bias, output)
}

/// The operands of Burn's own op, if dgrad is that.
fn plain_dgrad<B: Nvfp4Engine>(
    weight: &Operand<B>,
    dy: &FloatTensor<B>,
    plan: &LinearPlan,
) -> Option<(FloatTensor<B>, FloatTensor<B>)> {
    match (plan.recipe.dgrad.lhs, weight) {
        (OperandSpec::HighPrecision, Operand::HighPrecision { tensor, .. })
            if !B::has_own_gemm(&B::float_device(dy)) =>
        {
            let weight = cast::<B>(tensor.clone(), dy.dtype());
            Some((weight, dy.clone()))
        }
        _ => None,
    }
}

/// `dW = Xᵀ dY`, `[d_input, d_output]`, in the dtype of `W`.
pub(crate) fn wgrad<B: Nvfp4Engine>(
    x: &Operand<B>,
    x_mean: Option<FloatTensor<B>>,
    dy: FloatTensor<B>,
    plan: &LinearPlan,
    like: Like,
) -> FloatTensor<B> {
    if let Some((x, dy)) = plain_wgrad::<B>(x, &dy, plan, like.1) {
        sample::burns_own::<B>("wgrad", &dy, plan);
        return B::linear_weight_backward(x, dy);
    }
    let device = B::float_device(&dy);
    let tokens = tokens(&dy.shape());
    let Centred { rest, mean } = Centred::<B>::new(dy, plan);
    let dy = wgrad_use(plan).quantize::<B>(rest, plan, Lifetime::OneGemm);
    let means = x_mean.zip(mean).map(|means| (means, tokens));
    weight_gradient::<B>(x, &dy, means, plan, output::<B>(like, &device))
}

/// The means of `X` and of `dY`, and the number of tokens.
type Means<B> = ((FloatTensor<B>, FloatTensor<B>), usize);

/// The GEMM of wgrad, and the product of both means.
fn weight_gradient<B: Nvfp4Engine>(
    x: &Operand<B>,
    dy: &Operand<B>,
    means: Option<Means<B>>,
    plan: &LinearPlan,
    output: Output<'_, B>,
) -> FloatTensor<B> {
    sample::gemm::<B>("wgrad", plan.recipe.wgrad, [x, dy], plan, output.device);
    let Some(((x_mean, dy_mean), tokens)) = means else {
        return B::gemm(x, dy, None, output);
    };
    let dtype = output.dtype;
    let output = Output {
        dtype: DType::F32,
        ..output
    };
    let dw = B::gemm(x, dy, None, output);
    cast::<B>(add_outer::<B>(dw, [x_mean, dy_mean], tokens), dtype)
}

/// Leading dims, flattened.
fn tokens(shape: &Shape) -> usize {
    let leading = 0..shape.num_dims() - 1;
    leading.map(|dim| shape[dim]).product()
}

/// The operands of Burn's own op, if wgrad is that.
fn plain_wgrad<B: Nvfp4Engine>(
    x: &Operand<B>,
    dy: &FloatTensor<B>,
    plan: &LinearPlan,
    dtype: DType,
) -> Option<(FloatTensor<B>, FloatTensor<B>)> {
    match (x, plan.recipe.wgrad.rhs) {
        (Operand::HighPrecision { tensor, .. }, OperandSpec::HighPrecision)
            if !B::has_own_gemm(&B::float_device(dy)) =>
        {
            // In the dtype of the weight: a master weight in f32 gets a gradient summed in f32.
            Some((
                cast::<B>(tensor.clone(), dtype),
                cast::<B>(dy.clone(), dtype),
            ))
        }
        _ => None,
    }
}

fn output<B: Backend>((shape, dtype): Like, device: &Device<B>) -> Output<'_, B> {
    Output {
        shape,
        dtype,
        device,
    }
}

/// `dX` where forward has kept nothing.
pub(crate) fn x_backward<B: Nvfp4Engine>(
    weight: FloatTensor<B>,
    dy: FloatTensor<B>,
    plan: &LinearPlan,
    like: Like,
) -> FloatTensor<B> {
    let weight = for_backward::<B>(weight, fprop_weight_use(plan), dgrad_weight_use(plan), plan);
    dgrad::<B>(&weight, dy, plan, like)
}

/// `dW` where forward has kept nothing.
pub(crate) fn weight_backward<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    dy: FloatTensor<B>,
    plan: &LinearPlan,
    like: Like,
) -> FloatTensor<B> {
    let Centred { rest, mean } = Centred::<B>::new(x, plan);
    let x = for_backward::<B>(rest, fprop_x_use(plan), wgrad_x_use(plan), plan);
    wgrad::<B>(&x, mean, dy, plan, like)
}

/// A forward operand as backward reads it, from the tensor.
fn for_backward<B: Nvfp4Engine>(
    tensor: FloatTensor<B>,
    now: Use,
    later: Use,
    plan: &LinearPlan,
) -> Operand<B> {
    if !later.reads_fprop(now, plan) {
        return later.quantize::<B>(tensor, plan, Lifetime::OneGemm);
    }
    let device = B::float_device(&tensor);
    let shape = tensor.shape();
    let made = now.quantize::<B>(tensor, plan, Lifetime::OneGemm);
    let multiplied = B::dequantize_operand(&made, now.along, shape, &device);
    later.quantize::<B>(multiplied, plan, Lifetime::OneGemm)
}

/// Both gradients, from what forward has kept; `dY` is read and quantized once for both.
pub(crate) fn backward<B: Nvfp4Engine>(
    kept: Kept<B>,
    dy: FloatTensor<B>,
    plan: &LinearPlan,
    x: Like,
    weight: Like,
) -> (Option<FloatTensor<B>>, Option<FloatTensor<B>>) {
    let (rows, columns) = (dgrad_use(plan), wgrad_use(plan));
    let device = B::float_device(&dy);
    match kept {
        Kept {
            weight: Some(kept_weight),
            x: Some(kept_x),
            x_mean,
        } if plain_dgrad::<B>(&kept_weight, &dy, plan).is_none()
            && plain_wgrad::<B>(&kept_x, &dy, plan, weight.1).is_none() =>
        {
            let tokens = tokens(&dy.shape());
            let Centred { rest: dy, mean } = Centred::<B>::new(dy, plan);
            let one_packing = rows.spec == columns.spec
                && rows.spec.is_transposable()
                && B::packs_for_both_axes(&device);
            let (for_dx, for_dw) = if one_packing {
                let dy = rows.quantize::<B>(dy, plan, Lifetime::NowAndKept);
                let transposed = dy.transposed();
                (dy, transposed)
            } else {
                let requests = [
                    rows.request(plan, Lifetime::OneGemm),
                    columns.request(plan, Lifetime::OneGemm),
                ];
                pair(quantize_all(dy, &requests, None, plan))
            };
            let output_x = output::<B>(x, &device);
            let dx = x_gradient::<B>(&for_dx, &kept_weight, mean.clone(), plan, output_x);
            drop((for_dx, kept_weight));
            let means = x_mean.zip(mean).map(|means| (means, tokens));
            let output_w = output::<B>(weight, &device);
            let dw = weight_gradient::<B>(&kept_x, &for_dw, means, plan, output_w);
            (Some(dx), Some(dw))
        }
        Kept {
            weight: kept_weight,
            x: kept_x,
            x_mean,
        } => {
            let dx = kept_weight.map(|weight| dgrad::<B>(&weight, dy.clone(), plan, x));
            let dw = kept_x.map(|kept| wgrad::<B>(&kept, x_mean, dy, plan, weight));
            (dx, dw)
        }
    }
}

/// The operands of two requests.
fn pair<B: Backend>(operands: Vec<Operand<B>>) -> (Operand<B>, Operand<B>) {
    let [first, second] = operands.try_into().expect(ONE_EACH);
    (first, second)
}

/// Operands of the same tensor; in a sampled step what that does is measured first.
fn quantize_all<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    requests: &[OperandRequest<'_>],
    other: Option<&Operand<B>>,
    plan: &LinearPlan,
) -> Vec<Operand<B>> {
    if plan.recipe.scale_renewal == ScaleRenewal::EveryUse {
        let own = vec![None; requests.len()];
        sample::operands::<B>(&x, requests, &own, plan);
        return B::quantize_operands(x, requests, other);
    }
    renewal::quantize(x, requests, other, plan)
}

/// See [`Nvfp4Engine::weight_values`]. Weights are rounded to nearest: no key is read.
pub(crate) fn weight_values<B: Nvfp4Engine>(
    weight: FloatTensor<B>,
    spec: OperandSpec,
) -> FloatTensor<B> {
    let (shape, device) = (weight.shape(), B::float_device(&weight));
    let request = OperandRequest {
        spec,
        along: Contraction::Rows,
        key: RandomKey {
            seed: 0,
            step: 0,
            micro_batch: 0,
            stream: Stream::Other(0),
        },
        lifetime: Lifetime::OneGemm,
        layer: "a traced weight",
        operand: "fprop.rhs",
    };
    let operand = B::quantize_operand(weight, &request);
    B::dequantize_operand(&operand, Contraction::Rows, shape, &device)
}

/// `db`, the sum of the unquantized `dY` over tokens, in `dtype`.
pub(crate) fn bias_grad<B: Backend>(dy: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    B::linear_bias_backward(cast::<B>(dy, dtype))
}

/// Converts unless the dtype is already right.
pub(crate) fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if tensor.dtype() == dtype {
        tensor
    } else {
        B::float_cast(tensor, dtype.into())
    }
}

/// A tensor that forward uses now and backward may use along its other axis.
struct Shared<B: Backend> {
    tensor: FloatTensor<B>,
    now: Use,
    kept: Option<KeptUse>,
    /// How long the operand of forward is needed.
    lifetime: Lifetime,
}

impl<B: Nvfp4Engine> Shared<B> {
    fn new(tensor: FloatTensor<B>, now: Use, kept: Option<KeptUse>) -> Self {
        Self {
            tensor,
            now,
            kept,
            lifetime: Lifetime::OneGemm,
        }
    }

    /// The operand of forward is kept as well.
    fn all_kept(self) -> Self {
        let lifetime = Lifetime::Kept;
        Self { lifetime, ..self }
    }

    /// The operand of fprop, whose other operand may be there already, and what backward needs.
    fn quantize(
        self,
        plan: &LinearPlan,
        other: Option<&Operand<B>>,
    ) -> (Operand<B>, Option<Operand<B>>) {
        let Self {
            tensor,
            now,
            kept,
            lifetime,
        } = self;
        match kept {
            Some(KeptUse {
                later,
                one_packing: false,
            }) if later.reads_fprop(now, plan) => {
                let (device, shape) = (B::float_device(&tensor), tensor.shape());
                let made = now.quantize_for::<B>(tensor, plan, lifetime, other);
                let multiplied = B::dequantize_operand(&made, now.along, shape, &device);
                let kept = later.quantize::<B>(multiplied, plan, Lifetime::Kept);
                (made, Some(kept))
            }
            Some(KeptUse {
                later,
                one_packing: false,
            }) => {
                let requests = [
                    now.request(plan, lifetime),
                    later.request(plan, Lifetime::Kept),
                ];
                let (now, kept) = pair(quantize_all(tensor, &requests, other, plan));
                (now, Some(kept))
            }
            Some(_) => {
                let lifetime = match lifetime {
                    Lifetime::OneGemm | Lifetime::NowAndKept => Lifetime::NowAndKept,
                    Lifetime::Kept => Lifetime::Kept,
                };
                let packed = now.quantize_for::<B>(tensor, plan, lifetime, other);
                let kept = packed.transposed().into_kept();
                (packed, Some(kept))
            }
            None => {
                let made = now.quantize_for::<B>(tensor, plan, lifetime, other);
                (made, None)
            }
        }
    }

    /// What backward needs, where fprop reads the tensor itself.
    fn later(self, plan: &LinearPlan) -> Option<Operand<B>> {
        let later = self.kept?.later;
        Some(later.quantize::<B>(self.tensor, plan, Lifetime::Kept))
    }
}
