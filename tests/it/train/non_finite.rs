//! NaN and infinity stop a run, and the message says where they came from.

use burn::backend::{Autodiff, NdArray};
use burn::tensor::TensorData;
use burn_nvfp4::Nvfp4;
use burn_nvfp4::recipe::{Policy, presets};
use burn_nvfp4_models::train::numerics::{Quantized, Unquantized};

use super::*;
use crate::device::exclusive;

/// Trains two steps, then puts a NaN into a parameter of the checkpoint and goes on.
fn error_with_nan_in<B: AutodiffBackend>(
    parameter: &str,
    numerics: impl Fn() -> Box<dyn Numerics>,
) -> String {
    let _device = exclusive();
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path());
    let run = Run {
        tokens: &tokens,
        directory: RunDirectory::at(&dir.path().join("run")),
        shape: shape(2, 32, 1),
        total: 4,
        save_every: 2,
        guard: STRICT,
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
