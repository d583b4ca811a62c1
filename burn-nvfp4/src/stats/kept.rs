//! What the nodes of linears keep for backward: as it stands on a device, and by count.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use burn_backend::Backend;

use crate::format::{Format, Fp8Scaling};
use crate::recipe::{OperandSpec, Recipe, ScaleRule};
use crate::runtime::{self, Key};

static KEPT: LazyLock<Mutex<HashMap<Key, Arc<AtomicUsize>>>> = LazyLock::new(Mutex::default);

fn counter<B: Backend>(device: &B::Device) -> Arc<AtomicUsize> {
    let mut table = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    table.entry(runtime::key::<B>(device)).or_default().clone()
}

/// Bytes that the nodes of the linears on `device` keep for backward now, under
/// `Nvfp4<Autodiff<B>>`: activations, packed or as they are, and packed weights, each once however
/// many nodes keep it. Weights that are not packed live anyway and do not count, nor do layers that
/// are Burn's own op.
pub fn kept_bytes<B: Backend>(device: &B::Device) -> usize {
    counter::<B>(device).load(Ordering::Relaxed)
}

/// Bytes that count as kept for as long as a clone of this lives.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    _bytes: Arc<CountedBytes>,
}

#[derive(Debug)]
struct CountedBytes {
    bytes: usize,
    counter: Arc<AtomicUsize>,
}

impl Counted {
    pub(crate) fn new<B: Backend>(device: &B::Device, bytes: usize) -> Self {
        let counter = counter::<B>(device);
        counter.fetch_add(bytes, Ordering::Relaxed);
        let _bytes = Arc::new(CountedBytes { bytes, counter });
        Self { _bytes }
    }
}

impl Drop for CountedBytes {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Bytes that the node of one linear keeps for backward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptBytes {
    /// Of `X`, for wgrad.
    pub x: usize,
    /// Of the weight, for dgrad, beyond the tensor itself.
    pub weight: usize,
}

impl KeptBytes {
    /// What a linear keeps under a recipe, by count.
    ///
    /// `shape` is `[tokens, d_input, d_output]`; an element of `X` has `element` bytes. `None` if a
    /// shape cannot be counted.
    pub fn of_linear(recipe: &Recipe, shape: [usize; 3], element: usize) -> Option<Self> {
        let [tokens, d_input, d_output] = shape;
        let read = recipe.wgrad.lhs;
        let x = if !read.is_quantized() {
            tokens.checked_mul(d_input)?.checked_mul(element)?
        } else if read == recipe.fprop.lhs && read.is_transposable() {
            // One packing serves fprop too, and lies as fprop reads it.
            packed_bytes(&read, tokens, d_input)?
        } else {
            packed_bytes(&read, d_input, tokens)?
        };
        let mean = if recipe.keeps_means_apart() {
            d_input.checked_mul(size_of::<f32>())?
        } else {
            0
        };
        let read = recipe.dgrad.rhs;
        let weight = if read.is_quantized() {
            packed_bytes(&read, d_input, d_output)?
        } else {
            0
        };
        let x = x.checked_add(mean)?;
        Some(Self { x, weight })
    }
}

/// Bytes of a packed operand `[rows, k]`: codes, block scales, amaxes.
fn packed_bytes(spec: &OperandSpec, rows: usize, k: usize) -> Option<usize> {
    let (format, scale_bytes, amaxes) = match *spec {
        OperandSpec::HighPrecision => return None,
        OperandSpec::Nvfp4 { block, scale, .. } => {
            let amaxes = match scale {
                ScaleRule::Row => rows,
                ScaleRule::Tensor | ScaleRule::FourOverSix { .. } | ScaleRule::Eden => 1,
            };
            (Format::Nvfp4 { block }, 1, amaxes)
        }
        OperandSpec::Mxfp4 { .. } => (Format::Mxfp4, 1, 1),
        OperandSpec::Mxfp8 { .. } => (Format::Mxfp8, 1, 1),
        OperandSpec::Fp8 { scaling } => {
            let scales = match scaling {
                Fp8Scaling::Tensor => 0,
                Fp8Scaling::Row128 | Fp8Scaling::Tile128x128 => size_of::<f32>(),
            };
            (Format::Fp8 { scaling }, scales, 1)
        }
    };
    let layout = format.layout(rows, spec.packed_k(k))?;
    let scales = layout.scales.checked_mul(scale_bytes)?;
    let amaxes = amaxes.checked_mul(size_of::<f32>())?;
    layout.codes.checked_add(scales)?.checked_add(amaxes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Contraction, MatrixView, quantize};
    use crate::recipe::presets;
    use crate::rng::{RandomKey, Stream};

    #[test]
    fn counts_are_the_bytes_of_what_the_quantizer_makes() {
        let key = RandomKey {
            seed: 0,
            step: 0,
            micro_batch: 0,
            stream: Stream::Other(0),
        };
        for preset in presets::PRESETS {
            let Recipe {
                fprop,
                dgrad,
                wgrad,
                ..
            } = preset.recipe;
            for spec in [
                fprop.lhs, fprop.rhs, dgrad.lhs, dgrad.rhs, wgrad.lhs, wgrad.rhs,
            ] {
                for (rows, k) in [(32, 256), (5, 40), (130, 17)] {
                    let values: Vec<f32> = (0..rows * k).map(|i| i as f32).collect();
                    let x = MatrixView::new(&values, rows, k).unwrap();
                    let made = quantize(x, Contraction::Columns, &spec, key);
                    let bytes = made.ok().map(|made| made.bytes());
                    assert_eq!(packed_bytes(&spec, rows, k), bytes, "{spec} {rows}x{k}");
                }
            }
        }
    }
}
