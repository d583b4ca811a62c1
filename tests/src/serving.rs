//! A linear on a weight that comes packed from a checkpoint.

use burn::tensor::{Tensor, TensorData, module};
use burn_nvfp4::cpu::{Contraction, MatrixView, quantize};
use burn_nvfp4::export::{ServingFormat, WEIGHTS_ONLY, served};
use burn_nvfp4::format::PackedMatrix;
use burn_nvfp4::recipe::{OperandSpec, Recipe, presets};
use burn_nvfp4::rng::{RandomKey, Stream};
use burn_nvfp4::{Nvfp4, Nvfp4Engine, PackedWeights, Policy, set_packed_weights, set_policy};

const D_INPUT: usize = 96;
const D_OUTPUT: usize = 40;

fn key() -> RandomKey {
    RandomKey {
        seed: 0,
        step: 0,
        micro_batch: 0,
        stream: Stream::Other(0),
    }
}

/// As a server has it: packed, written in a format, read back.
fn through_a_file(weight: &[f32], spec: &OperandSpec, format: ServingFormat) -> PackedMatrix {
    let view =
        MatrixView::new(weight, D_INPUT, D_OUTPUT).expect("the weight is one that servers read");
    let packed = quantize(view, Contraction::Rows, spec, key())
        .expect("the weight is one that servers read");
    let served = served(&packed).expect("the weight is one that servers read");
    let parts = format
        .split(&served)
        .expect("the weight is one that servers read");
    let scale = served.tensor_scale();
    let note = (scale.max_amax(), scale.q_max);
    format
        .join((D_OUTPUT, D_INPUT), parts, Some(note))
        .expect("the weight is one that servers read")
}

/// What the linear `up` gives when it quantizes its weight, and when it has it packed, read from
/// each format, beside a weight tensor of zeros.
pub fn with_and_without_packed<B: Nvfp4Engine>(recipe: Recipe) -> (Vec<f32>, Vec<Vec<f32>>) {
    let device: B::Device = Default::default();
    let policy = Policy::uniform(presets::HIGH_PRECISION);
    let policy = policy
        .with_override("up", recipe)
        .expect("a recipe of the presets");
    set_policy::<B>(&device, policy).expect("a policy of one pattern");
    let tensor = |shape: [usize; 2], salt: usize| {
        let value = |i: usize| ((i * 37 + salt * 101) % 257) as f32 / 64.0 - 2.0;
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
        Tensor::<Nvfp4<B>, 2>::from_data(TensorData::new(values, shape), &device)
    };
    let (x, weight) = (tensor([7, D_INPUT], 1), tensor([D_INPUT, D_OUTPUT], 2));
    let bias: Tensor<Nvfp4<B>, 1> = tensor([1, D_OUTPUT], 3).reshape([D_OUTPUT]);
    let run = |weight: Tensor<Nvfp4<B>, 2>| -> Vec<f32> {
        let linear = || module::linear(x.clone(), weight, Some(bias.clone()));
        burn_nvfp4::layer("up", linear)
            .into_data()
            .iter::<f32>()
            .collect()
    };
    let values: Vec<f32> = weight.to_data().iter::<f32>().collect();
    let on_the_fly = run(weight);
    let formats = [ServingFormat::Modelopt, ServingFormat::CompressedTensors];
    let from_files = formats.map(|format| {
        let mut packed = PackedWeights::default();
        packed.insert("up", through_a_file(&values, &recipe.fprop.rhs, format));
        set_packed_weights::<B>(&device, packed);
        let zeros = TensorData::zeros::<f32, _>([D_INPUT, D_OUTPUT]);
        let y = run(Tensor::from_data(zeros, &device));
        set_packed_weights::<B>(&device, PackedWeights::default());
        y
    });
    (on_the_fly, from_files.into())
}

/// Quantized weights alone, the published recipe (16x16 tiles), 1x16 blocks, four-over-six.
pub fn recipes() -> [(Recipe, &'static str); 4] {
    let preset = |name| {
        (
            presets::by_name(name)
                .expect("the weight is one that servers read")
                .recipe,
            name,
        )
    };
    [
        (WEIGHTS_ONLY, "weights only"),
        preset("nvidia"),
        preset("nvidia_1d_weights"),
        preset("four_over_six"),
    ]
}
