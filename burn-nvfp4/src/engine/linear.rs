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
//! bits as without the decorator. Each input gets a gradient of its own dtype; a bias gradient is
//! the sum of the unquantized `dY`. Nothing here decides what is quantized: the plan does.

use burn_backend::tensor::FloatTensor;
use burn_backend::{Backend, DType, Shape, TensorMetadata};

use super::{Lifetime, Nvfp4Engine, Operand, OperandRequest, Output};
use crate::cpu::Contraction;
use crate::recipe::OperandSpec;
use crate::rng::Stream;
use crate::runtime::LinearPlan;

/// Random bytes of an operand as fprop reads it, should a recipe round it stochastically.
const FPROP: Stream = Stream::Other(0);

/// Random bytes of a forward operand that backward reads along its other axis.
const KEPT: Stream = Stream::Other(1);

/// Which operands backward will need: the weight if `X` has a gradient, `X` if the weight has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
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
    fn weight(self) -> bool {
        matches!(self, Self::Weight | Self::Both)
    }

    fn x(self) -> bool {
        matches!(self, Self::X | Self::Both)
    }
}

/// What backward needs of forward, as dgrad and wgrad read it.
#[derive(Clone, Debug)]
pub(crate) struct Kept<B: Backend> {
    /// rhs of dgrad.
    pub(crate) weight: Option<Operand<B>>,
    /// lhs of wgrad.
    pub(crate) x: Option<Operand<B>>,
}

/// `Y = X W + b`, and the operands that backward will need.
pub(crate) fn fprop<B: Nvfp4Engine>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    plan: &LinearPlan,
    wanted: Wanted,
) -> (FloatTensor<B>, Kept<B>) {
    let recipe = &plan.recipe;
    let mut shape = x.shape();
    let rank = shape.num_dims();
    shape[rank - 1] = weight.shape()[1];

    let lhs = Shared::new(
        x.clone(),
        Use {
            spec: recipe.fprop.lhs,
            along: Contraction::Columns,
            operand: "fprop.lhs",
        },
        wanted.x().then(|| wgrad_x_use(plan)),
    );
    let rhs = Shared::new(
        weight.clone(),
        Use {
            spec: recipe.fprop.rhs,
            along: Contraction::Rows,
            operand: "fprop.rhs",
        },
        wanted.weight().then(|| dgrad_weight_use(plan)),
    );
    let kept = |rhs: &Shared<B>, lhs: &Shared<B>, weight, x| Kept {
        weight: rhs.kept(plan, weight),
        x: lhs.kept(plan, x),
    };

    if !recipe.fprop.is_quantized() {
        let dtype = x.dtype();
        let y = B::linear(
            x,
            cast::<B>(weight, dtype),
            bias.map(|bias| cast::<B>(bias, dtype)),
        );
        return (y, kept(&rhs, &lhs, None, None));
    }
    let device = B::float_device(&x);
    let output = Output {
        shape,
        dtype: x.dtype(),
        device: &device,
    };
    let (x, weight) = (lhs.now(plan), rhs.now(plan));
    let y = B::gemm(&x, &weight, bias, output);
    (y, kept(&rhs, &lhs, Some(&weight), Some(&x)))
}

/// `dX = dY Wᵀ` in the shape and dtype of `X`.
pub(crate) fn dgrad<B: Nvfp4Engine>(
    weight: &Operand<B>,
    dy: FloatTensor<B>,
    plan: &LinearPlan,
    (shape, dtype): (Shape, DType),
) -> FloatTensor<B> {
    if let (OperandSpec::HighPrecision, Operand::HighPrecision { tensor, .. }) =
        (plan.recipe.dgrad.lhs, weight)
    {
        let weight = cast::<B>(tensor.clone(), dy.dtype());
        return cast::<B>(B::linear_x_backward(weight, dy), dtype);
    }
    let device = B::float_device(&dy);
    let output = Output {
        shape,
        dtype,
        device: &device,
    };
    let dy = quantize_dy::<B>(dy, plan, dgrad_use(plan), Lifetime::OneGemm);
    B::gemm(&dy, weight, None, output)
}

/// `dW = Xᵀ dY`, `[d_input, d_output]`, in the dtype of `W`.
pub(crate) fn wgrad<B: Nvfp4Engine>(
    x: &Operand<B>,
    dy: FloatTensor<B>,
    plan: &LinearPlan,
    (shape, dtype): (Shape, DType),
) -> FloatTensor<B> {
    if let (Operand::HighPrecision { tensor, .. }, OperandSpec::HighPrecision) =
        (x, plan.recipe.wgrad.rhs)
    {
        // In the dtype of the weight: a master weight in f32 gets a gradient summed in f32.
        let (x, dy) = (cast::<B>(tensor.clone(), dtype), cast::<B>(dy, dtype));
        return B::linear_weight_backward(x, dy);
    }
    let device = B::float_device(&dy);
    let output = Output {
        shape,
        dtype,
        device: &device,
    };
    let dy = quantize_dy::<B>(dy, plan, wgrad_use(plan), Lifetime::OneGemm);
    B::gemm(x, &dy, None, output)
}

/// `W` as the rhs of dgrad, where forward has kept nothing.
pub(crate) fn weight_for_dgrad<B: Nvfp4Engine>(
    weight: FloatTensor<B>,
    plan: &LinearPlan,
) -> Operand<B> {
    dgrad_weight_use(plan).quantize::<B>(weight, plan, KEPT, Lifetime::OneGemm)
}

/// `X` as the lhs of wgrad, where forward has kept nothing.
pub(crate) fn x_for_wgrad<B: Nvfp4Engine>(x: FloatTensor<B>, plan: &LinearPlan) -> Operand<B> {
    wgrad_x_use(plan).quantize::<B>(x, plan, KEPT, Lifetime::OneGemm)
}

/// Both gradients; `dY` is quantized once where one packing serves both.
pub(crate) fn backward<B: Nvfp4Engine>(
    kept: Kept<B>,
    dy: FloatTensor<B>,
    plan: &LinearPlan,
    x: (Shape, DType),
    weight: (Shape, DType),
) -> (Option<FloatTensor<B>>, Option<FloatTensor<B>>) {
    let (rows, columns) = (dgrad_use(plan), wgrad_use(plan));
    let one_packing = rows.spec == columns.spec && rows.spec.is_transposable();
    if let (Some(kept_weight), Some(kept_x), true) = (&kept.weight, &kept.x, one_packing) {
        let device = B::float_device(&dy);
        let dy = quantize_dy::<B>(dy, plan, rows, Lifetime::Kept);
        let (shape, dtype) = x;
        let dx = B::gemm(
            &dy,
            kept_weight,
            None,
            Output {
                shape,
                dtype,
                device: &device,
            },
        );
        let (shape, dtype) = weight;
        let output = Output {
            shape,
            dtype,
            device: &device,
        };
        return (
            Some(dx),
            Some(B::gemm(kept_x, &dy.transposed(), None, output)),
        );
    }
    let dx = kept
        .weight
        .map(|weight| dgrad::<B>(&weight, dy.clone(), plan, x));
    let dw = kept.x.map(|x| wgrad::<B>(&x, dy, plan, weight));
    (dx, dw)
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

/// One use of a tensor as an operand.
#[derive(Clone, Copy, Debug)]
struct Use {
    spec: OperandSpec,
    along: Contraction,
    operand: &'static str,
}

impl Use {
    fn quantize<B: Nvfp4Engine>(
        self,
        x: FloatTensor<B>,
        plan: &LinearPlan,
        stream: Stream,
        lifetime: Lifetime,
    ) -> Operand<B> {
        let Self {
            spec,
            along,
            operand,
        } = self;
        let request = OperandRequest {
            spec,
            along,
            key: plan.key(stream),
            lifetime,
            layer: plan.layer_name(),
            operand,
        };
        B::quantize_operand(x, &request)
    }
}

fn dgrad_weight_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.dgrad.rhs,
        along: Contraction::Columns,
        operand: "dgrad.rhs",
    }
}

fn wgrad_x_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.wgrad.lhs,
        along: Contraction::Rows,
        operand: "wgrad.lhs",
    }
}

fn dgrad_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.dgrad.lhs,
        along: Contraction::Columns,
        operand: "dgrad.lhs",
    }
}

fn wgrad_use(plan: &LinearPlan) -> Use {
    Use {
        spec: plan.recipe.wgrad.rhs,
        along: Contraction::Rows,
        operand: "wgrad.rhs",
    }
}

fn quantize_dy<B: Nvfp4Engine>(
    dy: FloatTensor<B>,
    plan: &LinearPlan,
    operand: Use,
    lifetime: Lifetime,
) -> Operand<B> {
    let stream = match operand.along {
        Contraction::Columns => Stream::Dgrad,
        Contraction::Rows => Stream::Wgrad,
    };
    operand.quantize::<B>(dy, plan, stream, lifetime)
}

/// A tensor that forward uses now and backward may use along its other axis.
struct Shared<B: Backend> {
    tensor: FloatTensor<B>,
    now: Use,
    later: Option<Use>,
}

impl<B: Nvfp4Engine> Shared<B> {
    fn new(tensor: FloatTensor<B>, now: Use, later: Option<Use>) -> Self {
        Self { tensor, now, later }
    }

    /// True if backward reads what forward packed, along the other axis.
    fn one_packing(&self) -> bool {
        self.later.is_some_and(|later| later.spec == self.now.spec)
            && self.now.spec.is_transposable()
    }

    fn now(&self, plan: &LinearPlan) -> Operand<B> {
        let lifetime = if self.one_packing() {
            Lifetime::Kept
        } else {
            Lifetime::OneGemm
        };
        self.now
            .quantize::<B>(self.tensor.clone(), plan, FPROP, lifetime)
    }

    /// What backward needs; `packed` is what [`Self::now`] made, if it ran.
    fn kept(&self, plan: &LinearPlan, packed: Option<&Operand<B>>) -> Option<Operand<B>> {
        let later = self.later?;
        Some(match packed {
            Some(packed) if self.one_packing() => packed.transposed(),
            _ => later.quantize::<B>(self.tensor.clone(), plan, KEPT, Lifetime::Kept),
        })
    }
}
