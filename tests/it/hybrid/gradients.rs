//! Gradients against five-point differences, in f64, for every parameter of a model with every
//! mixer.

use burn::backend::{Autodiff, NdArray};
use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor, TensorData};
use burn_hybrid_ops::HybridEngine;
use burn_nvfp4_models::config::{Bias, HybridConfig};
use burn_nvfp4_models::hybrid::HybridLm;
use burn_nvfp4_models::nn::loss::cross_entropy;

use super::blocks::random;
use super::support::f64_device;

type F64 = NdArray<f64>;
type Train = Autodiff<F64>;

/// Moves one parameter by `scale` times a random direction.
struct Nudge {
    id: ParamId,
    scale: f64,
}

impl<B: HybridEngine> ModuleMapper<B> for Nudge {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        if param.id != self.id {
            return param;
        }
        param.map(|tensor| {
            let direction = random::<B, D>("direction", tensor.dims());
            tensor + direction * self.scale
        })
    }
}

fn config() -> HybridConfig {
    HybridConfig {
        d_model: 12,
        pattern: "M*-M".parse().unwrap(),
        n_attention_heads: 4,
        n_kv_heads: 2,
        attention_head_dim: 3,
        d_ffn: 10,
        n_mamba_heads: 4,
        mamba_head_dim: 3,
        n_groups: 2,
        d_state: 5,
        chunk_len: 4,
        // Large enough that every branch matters.
        init_std: 0.5,
        mamba_bias: Bias::Learned,
        attention_bias: Bias::Learned,
        mlp_bias: Bias::Learned,
        ..HybridConfig::preset("tiny-1m", 17).unwrap()
    }
}

fn ids<B: HybridEngine>() -> Tensor<B, 2, Int> {
    let ids: Vec<i64> = (0..22).map(|i| (i * i * 7 + 3) % 17).collect();
    Tensor::from_data(TensorData::new(ids, [2, 11]), &B::Device::default())
}

fn loss<B: HybridEngine>(model: &HybridLm<B>) -> Tensor<B, 1> {
    let logits = model.forward(ids()).narrow(1, 0, 10).reshape([20, 17]);
    cross_entropy(logits, ids::<B>().narrow(1, 1, 10).reshape([20]))
}

#[test]
fn gradients_of_every_parameter_are_those_of_differences() {
    let model = config().init::<Train>(&f64_device(), 5);
    let grads = GradientsParams::from_grads(loss(&model).backward(), &model);
    let slope = |id, rank| match rank {
        1 => along::<1>(&grads, id),
        2 => along::<2>(&grads, id),
        _ => along::<3>(&grads, id),
    };
    let plain = burn::module::AutodiffModule::valid(&model);
    let step = 2e-5;
    for param in model.parameters() {
        let at = |scale| {
            let moved = plain.clone().map(&mut Nudge {
                id: param.id,
                scale,
            });
            loss(&moved).into_data().iter::<f64>().next().unwrap()
        };
        let (near, far) = (at(step) - at(-step), at(2.0 * step) - at(-2.0 * step));
        let want = (8.0 * near - far) / (12.0 * step);
        let got = slope(param.id, param.shape.len());
        // Five points: step^4 of truncation, and 1e-16 / step of rounding.
        let error = (got - want).abs() / want.abs().max(1e-2);
        assert!(
            error < 1e-8,
            "{}: {got} instead of {want} ({error:e})",
            param.name
        );
        assert!(got != 0.0, "{} does not matter", param.name);
    }
}

/// The derivative along the direction of [`Nudge`].
fn along<const D: usize>(grads: &GradientsParams, id: ParamId) -> f64 {
    let grad = grads
        .get::<F64, D>(id)
        .expect("every parameter has a gradient");
    let direction = random::<F64, D>("direction", grad.dims());
    (grad * direction)
        .sum()
        .into_data()
        .iter::<f64>()
        .next()
        .unwrap()
}
