//! NaN and infinity stop a run, and the message says where they came from.

use burn::backend::{Autodiff, NdArray};
use burn::tensor::TensorData;
use burn_hybrid_ops::TrainingEngine;
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::{Policy, presets};
use burn_nvfp4_models::train::diagnosis::Diagnose;
use burn_nvfp4_models::train::gradients::value_of_non_finite;
use burn_nvfp4_models::train::numerics::{Quantized, Unquantized};
use burn_nvfp4_models::train::params::{read_parameters, write_parameters};

use super::*;
use crate::device::exclusive;

/// Trains two steps, then puts a NaN into a parameter of the checkpoint and goes on.
fn error_with_nan_in<B: TrainingEngine>(
    parameter: &str,
    numerics: impl Fn() -> Box<dyn Numerics>,
) -> String {
    let _device = exclusive();
    let place = Place::new();
    let run = Run {
        total: 4,
        save_every: 2,
        ..place.run("run", shape(2, 32, 1))
    };
    run.go::<B>(numerics(), None, &Interrupter::new()).unwrap();
    let mut checkpoint = run.directory.load(Some(2)).unwrap();
    let data = &checkpoint.parameters[parameter];
    let mut values: Vec<f32> = data.iter::<f32>().collect();
    values[5] = f32::NAN;
    let broken = TensorData::new(values, data.shape.clone());
    checkpoint.parameters.insert(parameter.to_owned(), broken);
    let error = run
        .go::<B>(numerics(), Some(checkpoint), &Interrupter::new())
        .unwrap_err();
    assert_eq!(
        run.directory.steps().unwrap(),
        [2],
        "earlier checkpoints are untouched"
    );
    error.to_string()
}

#[test]
fn a_parameter_that_is_no_number_is_named_with_the_step() {
    let error = error_with_nan_in::<Autodiff<NdArray>>("norm_f.weight", || Box::new(Unquantized));
    assert!(
        error.starts_with("step 3: training stopped after 1 steps in a row"),
        "{error}"
    );
    assert!(error.contains("in the value of norm_f.weight;"), "{error}");
}

#[test]
fn a_quantized_operand_that_is_no_number_is_named_with_its_layer() {
    type B = Nvfp4<Autodiff<NdArray>>;
    // Quantizing turns NaN into a number (numerics §1): only the watch on the operand sees it.
    let error = error_with_nan_in::<B>("layers.1.mixer.up_proj.weight", || {
        let policy = Policy::uniform(presets::NVIDIA);
        Box::new(Quantized::<B>::new(Default::default(), policy, 7).unwrap())
    });
    assert!(error.starts_with("step 3: training stopped"), "{error}");
    assert!(
        error.contains("fprop.rhs of layers.1.mixer.up_proj, from the value of layers.1.mixer"),
        "{error}"
    );
}

#[test]
fn a_forward_that_overflows_is_named_by_its_first_value() {
    let _device = exclusive();
    let dir = tempfile::tempdir().unwrap();
    let batches = TrainBatches::new(
        tokens(dir.path()),
        shape(2, 32, 1),
        0,
        0,
        Default::default(),
    );
    let ids = batches.unwrap().at(0, 0).inputs;
    let model: HybridLm<Autodiff<NdArray>> = tiny().init(&Default::default(), 3);
    assert_eq!(model.first_non_finite(ids.clone()), None);
    // Each factor is a number and so is every weight; what block 1 makes of them is none.
    let mut parameters = read_parameters(&model);
    let weight = &parameters["layers.1.mixer.up_proj.weight"];
    let huge: Vec<f32> = weight.iter::<f32>().map(|value| value * 1e22).collect();
    let huge = TensorData::new(huge, weight.shape.clone());
    parameters.insert("layers.1.mixer.up_proj.weight".to_owned(), huge);
    let model = write_parameters(model, &parameters, &Default::default()).unwrap();
    assert_eq!(value_of_non_finite(&model), None);
    let found = model.first_non_finite(ids);
    assert_eq!(found.as_deref(), Some("layers.1.mixer"));
}
