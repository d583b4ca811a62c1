//! Quantizes a matrix in every format and prints what it costs: bytes per element and error.
//!
//! `cargo run -p burn-nvfp4 --example quantize_tensor`
#![expect(clippy::print_stdout, reason = "an example shows its result")]

use burn_nvfp4::QuantizeError;
use burn_nvfp4::cpu::{Contraction, MatrixView, dequantize, quantize};
use burn_nvfp4::recipe::{
    BlockShape, E8m0Rule, Fp8Scaling, OperandSpec, Rounding, ScaleRule, Transform,
};
use burn_nvfp4::rng::{RandomKey, Stream};

const ROWS: usize = 512;
const K: usize = 1024;

const fn nvfp4(block: BlockShape) -> OperandSpec {
    OperandSpec::Nvfp4 {
        block,
        scale: ScaleRule::Tensor,
        rounding: Rounding::NearestEven,
        transform: Transform::None,
    }
}

fn main() -> Result<(), QuantizeError> {
    let x = bell_curve();
    let key = RandomKey {
        seed: 42,
        step: 0,
        micro_batch: 0,
        stream: Stream::Dgrad,
    };
    let specs = [
        ("NVFP4 1x16", nvfp4(BlockShape::Row16)),
        ("NVFP4 16x16", nvfp4(BlockShape::Tile16x16)),
        (
            "NVFP4 1x16 SR",
            nvfp4(BlockShape::Row16).with_rounding(Rounding::Stochastic),
        ),
        (
            "MXFP8 1x32",
            OperandSpec::Mxfp8 {
                scale: E8m0Rule::RoundUp,
            },
        ),
        (
            "FP8 per tensor",
            OperandSpec::Fp8 {
                scaling: Fp8Scaling::Tensor,
            },
        ),
    ];
    println!(
        "{:<16} {:>10} {:>12} {:>14}",
        "format", "bytes", "bits/element", "relative MSE"
    );
    for (name, spec) in specs {
        let view = MatrixView::new(&x, ROWS, K)?;
        let packed = quantize(view, Contraction::Columns, &spec, key)?;
        let error = relative_mse(&x, &dequantize(&packed));
        let bits = 8.0 * packed.bytes() as f64 / x.len() as f64;
        println!(
            "{name:<16} {:>10} {bits:>12.3} {error:>14.3e}",
            packed.bytes()
        );
    }

    let block = MatrixView::new(&x[..16], 1, 16)?;
    let packed = quantize(block, Contraction::Columns, &nvfp4(BlockShape::Row16), key)?;
    println!("\none block: {:.3?}", &x[..16]);
    println!("codes:     {:02x?}", packed.codes());
    println!(
        "scale:     {:02x?}, amax {:?}",
        packed.block_scales(),
        packed.tensor_scale().amax
    );
    println!("back:      {:.3?}", dequantize(&packed));
    Ok(())
}

/// Sums of twelve uniform numbers: close to N(0, 1), and short to write.
fn bell_curve() -> Vec<f32> {
    let key = RandomKey {
        seed: 1,
        step: 0,
        micro_batch: 0,
        stream: Stream::Other(0),
    };
    let mut bytes = vec![0; ROWS * K * 12];
    key.fill(0.0, 0, &mut bytes);
    let uniform = |byte: &u8| (f32::from(*byte) + 0.5) / 256.0;
    bytes
        .chunks_exact(12)
        .map(|twelve| twelve.iter().map(uniform).sum::<f32>() - 6.0)
        .collect()
}

fn relative_mse(x: &[f32], q: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = x.iter().zip(q).map(|(x, q)| square(x - q)).sum();
    error / x.iter().map(|&x| square(x)).sum::<f64>()
}
