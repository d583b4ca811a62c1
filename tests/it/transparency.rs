//! With the high-precision recipe the decorator is invisible: same bits as the plain backend, on
//! ops, on modules, and over a training run.

use burn::backend::{Autodiff, Flex, NdArray};
use burn::module::{ModuleMapper, Param};
use burn::nn::attention::{MhaInput, MultiHeadAttentionConfig};
use burn::nn::conv::Conv1dConfig;
use burn::nn::loss::MseLoss;
use burn::nn::{
    BatchNormConfig, EmbeddingConfig, GroupNormConfig, LayerNormConfig, LinearConfig, LstmConfig,
    RmsNormConfig,
};
use burn::optim::{AdamWConfig, GradientsParams, Optimizer};
use burn::prelude::*;
use burn::tensor::activation;
use burn::tensor::backend::AutodiffBackend;
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::presets;

use crate::device::exclusive;
use crate::linear::use_recipe;

/// Named results, as bits.
type Bits = Vec<(&'static str, Vec<u32>)>;

fn push<B: Backend, const D: usize>(to: &mut Bits, name: &'static str, tensor: Tensor<B, D>) {
    let data = tensor.into_data().convert::<f32>();
    to.push((
        name,
        data.as_slice::<f32>()
            .unwrap()
            .iter()
            .map(|x| x.to_bits())
            .collect(),
    ));
}

/// A fixed wave: every backend starts from the same values.
fn wave<B: Backend, const D: usize>(shape: [usize; D], phase: f32) -> Tensor<B, D> {
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len).map(|i| (i as f32 * 0.37 + phase).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), &Default::default())
}

fn ops<B: Backend>() -> Bits {
    let mut out = Bits::new();
    let (a, b) = (wave::<B, 3>([2, 6, 8], 0.0), wave::<B, 3>([2, 6, 8], 1.0));
    let positive = a.clone().abs() + 0.5;
    push(&mut out, "add", a.clone() + b.clone());
    push(&mut out, "sub", a.clone() - b.clone() * 3.0);
    push(&mut out, "div", a.clone() / (b.clone().abs() + 0.1));
    push(
        &mut out,
        "matmul",
        a.clone().matmul(b.clone().swap_dims(1, 2)),
    );
    push(&mut out, "exp", a.clone().exp());
    push(&mut out, "log", positive.clone().log());
    push(&mut out, "log1p", positive.clone().log1p());
    push(&mut out, "sqrt", positive.clone().sqrt());
    push(&mut out, "powf", positive.clone().powf(b.clone()));
    push(&mut out, "powi", a.clone().powi_scalar(3));
    push(
        &mut out,
        "trig",
        a.clone().sin() + a.clone().cos() * a.clone().tanh(),
    );
    push(&mut out, "erf", a.clone().erf());
    push(&mut out, "sum_dim", a.clone().sum_dim(1));
    push(&mut out, "mean", a.clone().mean());
    push(&mut out, "var", a.clone().var(2));
    push(&mut out, "prod", positive.clone().prod_dim(2));
    push(&mut out, "max", a.clone().max_dim(2));
    push(&mut out, "topk", a.clone().topk(3, 2));
    push(&mut out, "argmax", a.clone().argmax(2).float());
    push(&mut out, "sort", a.clone().sort(2));
    push(&mut out, "argsort", a.clone().argsort(1).float());
    push(&mut out, "cumsum", a.clone().cumsum(2));
    push(&mut out, "cat", Tensor::cat(vec![a.clone(), b.clone()], 1));
    push(
        &mut out,
        "stack",
        Tensor::stack::<4>(vec![a.clone(), b.clone()], 0),
    );
    push(&mut out, "repeat", a.clone().repeat_dim(2, 3));
    push(&mut out, "flip", a.clone().flip([0, 2]));
    push(&mut out, "permute", a.clone().permute([2, 0, 1]));
    push(&mut out, "slice", a.clone().slice([0..1, 2..5, 1..7]));
    push(
        &mut out,
        "slice_assign",
        a.clone()
            .slice_assign([0..2, 0..1, 0..8], wave([2, 1, 8], 2.0)),
    );
    push(&mut out, "clamp", a.clone().clamp(-0.3, 0.4));
    push(
        &mut out,
        "mask_fill",
        a.clone().mask_fill(b.clone().greater_elem(0.0), -7.0),
    );
    push(
        &mut out,
        "mask_where",
        a.clone().mask_where(b.clone().lower_elem(0.0), b.clone()),
    );
    let index = Tensor::<B, 1, Int>::from_ints([1, 0, 1, 5], &Default::default());
    push(&mut out, "select", a.clone().select(1, index.clone()));
    push(
        &mut out,
        "sign",
        a.clone().sign() + a.clone().floor() + a.clone().round(),
    );
    push(&mut out, "gelu", activation::gelu(a.clone()));
    push(&mut out, "silu", activation::silu(a.clone()));
    push(&mut out, "softmax", activation::softmax(a.clone(), 2));
    push(
        &mut out,
        "log_softmax",
        activation::log_softmax(a.clone(), 2),
    );
    push(&mut out, "sigmoid", activation::sigmoid(a.clone()));
    push(
        &mut out,
        "leaky_relu",
        activation::leaky_relu(a.clone(), 0.1),
    );
    push(
        &mut out,
        "int",
        (index.clone() * 3 + 1).remainder_scalar(4).float(),
    );
    push(&mut out, "bool", a.clone().greater(b.clone()).float());
    push(&mut out, "one_hot", index.one_hot::<2>(6).float());
    push(
        &mut out,
        "unfold",
        burn::tensor::module::unfold4d(
            a.clone().reshape([1, 2, 6, 8]),
            [2, 2],
            burn::tensor::ops::UnfoldOptions::new([1, 1], [0, 0], [1, 1]),
        ),
    );
    push(
        &mut out,
        "max_pool",
        burn::tensor::module::max_pool1d(a.clone(), 2, 2, 0, 1, false),
    );
    push(
        &mut out,
        "avg_pool",
        burn::tensor::module::avg_pool1d(a, 2, 2, 0, true, false),
    );
    out
}

/// Gives every parameter of a module fixed values. Burn's generators are process-wide, and other
/// tests draw from them at the same time.
#[derive(Default)]
struct Waves(f32);

impl<B: Backend> ModuleMapper<B> for Waves {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        self.0 += 0.7;
        param.map(|tensor| {
            let grad = tensor.is_require_grad();
            (wave(tensor.dims(), self.0) * 0.3)
                .detach()
                .set_require_grad(grad)
        })
    }
}

fn fixed<B: Backend, M: Module<B>>(module: M) -> M {
    module.map(&mut Waves::default())
}

/// Modules with their gradients.
fn modules<B: AutodiffBackend>() -> Bits {
    let device = B::Device::default();
    let mut out = Bits::new();
    let x = || wave::<B, 3>([2, 16, 32], 0.3).require_grad();

    /// Runs a module on `x` and records the output and the input gradient.
    macro_rules! module {
        ($name:literal, $module:expr, |$m:ident, $x:ident| $forward:expr) => {{
            let $m = fixed($module);
            let input = x();
            let $x = input.clone();
            let y = $forward;
            let grads = y.clone().square().sum().backward();
            push(&mut out, $name, y);
            push(
                &mut out,
                concat!($name, " gradient"),
                input.grad(&grads).unwrap(),
            );
        }};
    }
    module!(
        "linear",
        LinearConfig::new(32, 24).init::<B>(&device),
        |m, x| m.forward(x)
    );
    module!(
        "conv1d",
        Conv1dConfig::new(16, 8, 3).init::<B>(&device),
        |m, x| m.forward(x)
    );
    module!(
        "layer norm",
        LayerNormConfig::new(32).init::<B>(&device),
        |m, x| m.forward(x)
    );
    module!(
        "rms norm",
        RmsNormConfig::new(32).init::<B>(&device),
        |m, x| m.forward(x)
    );
    module!(
        "group norm",
        GroupNormConfig::new(4, 16).init::<B>(&device),
        |m, x| m.forward(x)
    );
    module!(
        "batch norm",
        BatchNormConfig::new(16).init::<B>(&device),
        |m, x| m.forward(x)
    );
    module!(
        "lstm",
        LstmConfig::new(32, 16, true).init::<B>(&device),
        |m, x| m.forward(x, None).0
    );
    module!(
        "attention",
        MultiHeadAttentionConfig::new(32, 4)
            .with_dropout(0.0)
            .init::<B>(&device),
        |m, x| m.forward(MhaInput::self_attn(x)).context
    );
    let ids = Tensor::<B, 2, Int>::from_ints([[1, 3, 2], [0, 4, 4]], &device);
    push(
        &mut out,
        "embedding",
        fixed(EmbeddingConfig::new(5, 8).init::<B>(&device)).forward(ids),
    );
    out
}

/// Twenty AdamW steps of a small regression; every parameter at the end.
fn training<B: AutodiffBackend>() -> Bits {
    let device = B::Device::default();
    let mut model = fixed((
        LinearConfig::new(16, 32).init::<B>(&device),
        LinearConfig::new(32, 4).init::<B>(&device),
    ));
    let mut optimizer = AdamWConfig::new().init();
    let (x, target) = (wave::<B, 2>([24, 16], 0.1), wave::<B, 2>([24, 4], 0.7));
    let mut out = Bits::new();
    for _ in 0..20 {
        let hidden = activation::gelu(model.0.forward(x.clone()));
        let y = model.1.forward(hidden);
        let loss = MseLoss::new().forward(y, target.clone(), burn::nn::loss::Reduction::Mean);
        push(&mut out, "loss", loss.clone().inner());
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-2, model, grads);
    }
    push(&mut out, "weight 0", model.0.weight.val());
    push(&mut out, "weight 1", model.1.weight.val());
    out
}

fn assert_same(plain: Bits, decorated: Bits) {
    assert_eq!(plain.len(), decorated.len());
    for ((name, plain), (_, decorated)) in plain.into_iter().zip(decorated) {
        assert!(plain == decorated, "{name}");
    }
}

#[test]
fn every_op_gives_the_bits_of_the_plain_backend() {
    assert_same(ops::<NdArray>(), ops::<Nvfp4<NdArray>>());
    assert_same(ops::<Flex>(), ops::<Nvfp4<Flex>>());
}

#[test]
fn modules_and_their_gradients_give_the_bits_of_the_plain_backend() {
    let _turn = exclusive();
    use_recipe::<NdArray>(presets::HIGH_PRECISION);
    use_recipe::<Flex>(presets::HIGH_PRECISION);
    assert_same(
        modules::<Autodiff<NdArray>>(),
        modules::<Nvfp4<Autodiff<NdArray>>>(),
    );
    assert_same(
        modules::<Autodiff<NdArray>>(),
        modules::<Autodiff<Nvfp4<NdArray>>>(),
    );
    assert_same(
        modules::<Autodiff<Flex>>(),
        modules::<Nvfp4<Autodiff<Flex>>>(),
    );
}

#[test]
fn a_training_run_gives_the_bits_of_the_plain_backend() {
    let _turn = exclusive();
    use_recipe::<NdArray>(presets::HIGH_PRECISION);
    assert_same(
        training::<Autodiff<NdArray>>(),
        training::<Nvfp4<Autodiff<NdArray>>>(),
    );
    assert_same(
        training::<Autodiff<NdArray>>(),
        training::<Autodiff<Nvfp4<NdArray>>>(),
    );
}

#[test]
fn a_quantized_recipe_changes_linears_and_nothing_else() {
    let _turn = exclusive();
    use_recipe::<NdArray>(presets::NVIDIA);
    let plain = modules::<Autodiff<NdArray>>();
    let decorated = modules::<Nvfp4<Autodiff<NdArray>>>();
    use_recipe::<NdArray>(presets::HIGH_PRECISION);
    for ((name, plain), (_, decorated)) in plain.into_iter().zip(decorated) {
        let has_linears = ["linear", "lstm", "attention"]
            .iter()
            .any(|m| name.starts_with(m));
        assert_eq!(plain != decorated, has_linears, "{name}");
    }
}
