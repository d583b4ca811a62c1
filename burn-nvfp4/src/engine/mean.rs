//! A tensor as the mean over its tokens and the rest, of which only the rest is quantized
//! (numerics §12).
//!
//! With `X = 1 μ + X'` and `dY = 1 ν + dY'`, where `1` is a column of ones:
//!
//! | GEMM | from the rest | and exactly |
//! |---|---|---|
//! | fprop | `X' W` | `μ W`, in every row, with the weight that the GEMM has |
//! | dgrad | `dY' Wᵀ` | `ν Wᵀ`, in every row, likewise |
//! | wgrad | `X'ᵀ dY'` | `tokens · μᵀ ν`: the rest sums to zero over tokens |

use burn_backend::tensor::FloatTensor;
use burn_backend::{Backend, DType, Shape, TensorMetadata};

use super::{Nvfp4Engine, linear};
use crate::runtime::LinearPlan;

/// What is quantized of a tensor, and what is not.
pub(super) struct Centred<B: Backend> {
    /// The tensor, or the rest of it.
    pub(super) rest: FloatTensor<B>,
    /// f32 `[1, columns]`, unless it is in `rest`.
    pub(super) mean: Option<FloatTensor<B>>,
}

impl<B: Nvfp4Engine> Centred<B> {
    /// As the recipe has it.
    pub(super) fn new(x: FloatTensor<B>, plan: &LinearPlan) -> Self {
        if !plan.recipe.keeps_means_apart() || x.shape().num_elements() == 0 {
            return Self {
                rest: x,
                mean: None,
            };
        }
        let (rest, mean) = B::split_token_mean(x);
        let mean = Some(mean);
        Self { rest, mean }
    }
}

/// `dw + tokens · x_meanᵀ dy_mean`, in f32.
pub(super) fn add_outer<B: Backend>(
    dw: FloatTensor<B>,
    [x_mean, dy_mean]: [FloatTensor<B>; 2],
    tokens: usize,
) -> FloatTensor<B> {
    let d_input = x_mean.shape().num_elements();
    let column = B::float_reshape(x_mean, Shape::new([d_input, 1]));
    let sums = B::float_mul_scalar(column, (tokens as f32).into());
    let outer = B::float_mul(sums, dy_mean);
    B::float_add(linear::cast::<B>(dw, DType::F32), outer)
}
