//! Accumulating micro-batches averages.

use burn::backend::{Autodiff, NdArray};
use burn_nvfp4_models::train::numerics::Unquantized;

use super::*;
use crate::device::exclusive;

#[test]
fn two_micro_batches_equal_one_of_double_size() {
    let _device = exclusive();
    let place = Place::new();
    let losses = |name: &str, shape| {
        let run = Run {
            total: 3,
            save_every: 3,
            ..place.run(name, shape)
        };
        run.go::<Autodiff<NdArray>>(Box::new(Unquantized), None, &Interrupter::new())
            .unwrap();
        let lines = burn_nvfp4_models::train::log::read(&run.directory.path().join("log.jsonl"));
        let mut losses = Vec::new();
        for line in lines.unwrap() {
            if let LogLine::Step {
                loss, grad_norm, ..
            } = line
            {
                losses.push((loss, grad_norm));
            }
        }
        losses
    };
    // The order of the data is by window, so both runs see the same windows in each step.
    let (one, two) = (
        losses("one", shape(4, 32, 1)),
        losses("two", shape(2, 32, 2)),
    );
    assert_eq!((one.len(), two.len()), (3, 3));
    for (step, (one, two)) in one.iter().zip(&two).enumerate() {
        // Means over 128 tokens in another order: a relative error of about sqrt(128) roundings of
        // 2^-24 each, 7e-7, in the loss; the gradient adds a backward pass of similar depth, and
        // each AdamW update divides by its size, which amplifies it by about ten per step.
        let tolerance = 1e-5 * 10f64.powi(i32::try_from(step).unwrap() - 1).max(1.0);
        assert!(
            (one.0 - two.0).abs() < tolerance * one.0,
            "step {step}: {one:?} {two:?}"
        );
        assert!(
            (one.1 - two.1).abs() < 10.0 * tolerance * one.1,
            "step {step}: {one:?} {two:?}"
        );
    }
}
