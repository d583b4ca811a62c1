//! A tiny model learns one batch by heart under every preset recipe.

use burn::backend::{Autodiff, NdArray};
use burn::optim::{GradientsParams, Optimizer};
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::{PRESETS, Policy, Progress};
use burn_nvfp4_models::train::gradients::average_and_clip;
use burn_nvfp4_models::train::optim::GroupedAdamW;
use burn_nvfp4_models::train::step::next_token_loss;

use super::*;
use crate::device::exclusive;

type B = Nvfp4<Autodiff<NdArray>>;

#[test]
fn a_tiny_model_overfits_one_batch_under_every_preset() {
    let _device = exclusive();
    let dir = tempfile::tempdir().unwrap();
    let device = Default::default();
    let batch = TrainBatches::<B>::new(tokens(dir.path()), shape(2, 32, 1), 0, 0, device)
        .unwrap()
        .at(0, 0);
    for preset in PRESETS {
        burn_nvfp4::set_policy::<B>(&device, Policy::uniform(preset.recipe)).unwrap();
        burn_nvfp4::set_seed::<B>(&device, 1);
        let mut model: HybridLm<B> = tiny().init(&device, 3);
        let mut optimizer = GroupedAdamW::new(&OptimizerConfig {
            weight_decay: 0.0,
            ..OPTIMIZER
        });
        let (mut first, mut last) = (f64::NAN, f64::NAN);
        for step in 0..60 {
            burn_nvfp4::set_progress::<B>(&device, Progress { step, total: 60 });
            let loss = next_token_loss(&model, batch.clone());
            last = loss.clone().into_data().iter::<f64>().next().unwrap();
            if step == 0 {
                first = last;
            }
            let mut grads = GradientsParams::from_grads(loss.backward(), &model);
            average_and_clip::<B, _>(&model, &mut grads, 1.0, OPTIMIZER.clip_norm);
            model = optimizer.step(1e-2, model, grads);
        }
        // Fresh, the model knows nothing: ln 256 = 5.5. The batch has 64 tokens of which about 20
        // differ: knowing their frequencies alone would leave about 2.5.
        assert!(first > 5.0, "{}: starts at {first}", preset.name);
        assert!(last < 1.0, "{}: from {first} to {last} only", preset.name);
    }
}
