//! From the parts of a served weight to its values.

use rayon::prelude::*;

use super::{BLOCK, Parts};
use crate::format::{e2m1, e4m3};

/// Blocks per task.
const BLOCKS: usize = 1 << 12;

/// `code * factor(block scale)`, row after row.
pub(super) fn decode(parts: Parts<'_>, factor: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut values = vec![0.0; parts.codes.len() * 2];
    let tasks = values.par_chunks_mut(BLOCKS * BLOCK).enumerate();
    tasks.for_each(|(task, values)| {
        let codes = parts.codes[task * BLOCKS * BLOCK / 2..].chunks_exact(BLOCK / 2);
        let scales = &parts.scales[task * BLOCKS..];
        for ((values, codes), &scale) in values.chunks_exact_mut(BLOCK).zip(codes).zip(scales) {
            let factor = factor(e4m3::decode(scale));
            for (pair, &byte) in values.chunks_exact_mut(2).zip(codes) {
                pair[0] = e2m1::decode(byte & 0xF) * factor;
                pair[1] = e2m1::decode(byte >> 4) * factor;
            }
        }
    });
    values
}
