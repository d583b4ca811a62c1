//! Launches of the scan of Mamba-2, forward and backward, at the lengths of the models.

use anyhow::Result;
use burn_backend::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_hybrid_ops::kernels::ssd::{SsdInputs, SsdShape, backward, forward};
use cubecl::Runtime;
use cuda_check::properties::Architecture;
use cuda_check::runtime::{RecordingDevice, RecordingRuntime, recorded};

/// Heads of 64 with 128 states, as Mamba-2 has them, and of 80 with 256; a chunk that is not full.
///
/// # Errors
/// What a launch panics with.
pub(crate) fn record(architecture: Architecture) -> Result<()> {
    let device = RecordingDevice(architecture);
    for (head_dim, d_state, dtype) in [
        (64, 128, DType::BF16),
        (80, 256, DType::BF16),
        (64, 128, DType::F32),
    ] {
        let shape = SsdShape {
            batch: 2,
            seq: 200,
            heads: 8,
            head_dim,
            groups: 2,
            d_state,
            chunk_len: 256,
        };
        recorded(&device, || {
            scan(&shape, dtype, &device);
            Ok(())
        })?;
    }
    Ok(())
}

fn scan(shape: &SsdShape, dtype: DType, device: &RecordingDevice) {
    let SsdShape {
        batch, seq, heads, ..
    } = *shape;
    let tensor = |shape: &[usize], dtype| {
        let client = RecordingRuntime::client(device);
        empty_device_contiguous_dtype(client, *device, Shape::from(shape.to_vec()), dtype)
    };
    let inputs = SsdInputs {
        xbc: tensor(&[batch, seq, shape.columns()], dtype),
        dt: tensor(&[batch, seq, heads], DType::F32),
        a_log: tensor(&[heads], DType::F32),
        d_skip: tensor(&[heads], DType::F32),
    };
    let made = forward(inputs.clone(), shape);
    let dy = tensor(&[batch, seq, shape.channels()], dtype);
    backward(inputs, made.saved, dy, shape);
}
