//! Weights that come packed from a checkpoint, on a device.

use burn_nvfp4::Nvfp4Engine;
use burn_nvfp4::recipe::Recipe;
use tests::serving::{recipes, with_and_without_packed};

use crate::turns::{Fused, Plain, exclusive};

/// A weight that is quantized may lie transposed in memory, one that was packed does not: the GEMM
/// may sum in another order.
fn check<B: Nvfp4Engine>(recipe: Recipe, name: &str) {
    let (on_the_fly, from_files) = with_and_without_packed::<B>(recipe);
    let largest = on_the_fly.iter().fold(0.0_f32, |m, y| m.max(y.abs()));
    for y in from_files {
        let errors = y.iter().zip(&on_the_fly).map(|(a, b)| (a - b).abs());
        let worst = errors.fold(0.0_f32, |m, e| if e.is_nan() { f32::NAN } else { m.max(e) });
        assert!(
            largest > 0.0 && worst <= 1e-6 * largest,
            "{name}: {worst} of {largest}"
        );
    }
}

#[test]
fn a_linear_on_packed_weights_gives_what_one_that_quantizes_gives() {
    let Some(_turn) = exclusive() else { return };
    for (recipe, name) in recipes() {
        check::<Plain>(recipe, name);
        check::<Fused>(recipe, name);
    }
}
