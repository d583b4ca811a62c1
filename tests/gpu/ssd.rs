//! The scan of Mamba-2 by kernels, against the model's composition in f64.
//!
//! Bounds are shares of the largest expected value. In f32, in units of 2^-24: a value goes through
//! five sums of at most 256 terms whose roundings are independent, 16 units each; and the decay
//! between two tokens has an exponent which is a difference of sums along a chunk, wrong by one
//! unit of the largest of them. In 16 bits: operands are rounded once before each product, results
//! once more, half a unit each; eight of them are allowed for.

use burn::backend::{Autodiff, NdArray};
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::BackendTypes;
use burn_hybrid_ops::kernels::ssd::{SsdInputs, SsdShape, backward, forward};
use burn_nvfp4_models::nn::ssd as composition;
use half::{bf16, f16};

use crate::device::{Runtime, device, download, supports, upload};

/// The reference.
type Wide = Autodiff<NdArray<f64>>;

/// One scan, as numbers.
struct Case {
    shape: SsdShape,
    xbc: Vec<f64>,
    dt: Vec<f64>,
    a_log: Vec<f64>,
    d_skip: Vec<f64>,
    dy: Vec<f64>,
}

/// y, and the gradients of all inputs; x, B and C apart, since their sizes differ.
struct Results {
    named: Vec<(&'static str, Vec<f64>)>,
}

/// Uniform in [-1, 1), the same in every run.
fn noise(len: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z >> 40) as f64 / (1_u64 << 23) as f64 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn rounded(values: Vec<f64>, dtype: DType) -> Vec<f64> {
    let round = |v: f64| match dtype {
        DType::BF16 => bf16::from_f64(v).to_f64(),
        DType::F16 => f16::from_f64(v).to_f64(),
        _ => f64::from(v as f32),
    };
    values.into_iter().map(round).collect()
}

impl Case {
    /// Steps up to `largest_dt`, decay rates between 1 and 16 as in a fresh model.
    fn new(shape: SsdShape, largest_dt: f64, dtype: DType) -> Self {
        let tokens = shape.batch * shape.seq;
        let f32_rounded = |values: Vec<f64>| rounded(values, DType::F32);
        let steps = noise(tokens * shape.heads, 2).into_iter();
        let rates = noise(shape.heads, 3).into_iter();
        Self {
            xbc: rounded(noise(tokens * shape.columns(), 1), dtype),
            // Some tokens do nothing: dt is exactly 0.
            dt: f32_rounded(
                steps
                    .map(|v| v.max(-0.9) + 0.9)
                    .map(|v| v * largest_dt / 1.9)
                    .collect(),
            ),
            a_log: f32_rounded(rates.map(|v| (8.5 + 7.5 * v).ln()).collect()),
            d_skip: f32_rounded(noise(shape.heads, 4)),
            dy: rounded(noise(tokens * shape.channels(), 5), dtype),
            shape,
        }
    }

    /// The largest exponent in a chunk of 128 tokens.
    fn largest_decay(&self) -> f64 {
        let largest = |values: &[f64]| values.iter().fold(0.0_f64, |m, v| m.max(*v));
        let tokens = self.shape.seq.min(128) as f64;
        largest(&self.dt) * largest(&self.a_log).exp() * tokens
    }

    fn results(&self, y: Vec<f64>, dxbc: &[f64], others: [Vec<f64>; 3]) -> Results {
        let (channels, columns) = (self.shape.channels(), self.shape.columns());
        let states = (columns - channels) / 2;
        let part = |from: usize, len: usize| {
            let rows = dxbc.chunks(columns);
            rows.flat_map(|row| row[from..from + len].to_vec())
                .collect()
        };
        let [ddt, da_log, dd_skip] = others;
        let named = vec![
            ("y", y),
            ("dx", part(0, channels)),
            ("dB", part(channels, states)),
            ("dC", part(channels + states, states)),
            ("ddt", ddt),
            ("da_log", da_log),
            ("dd_skip", dd_skip),
        ];
        Results { named }
    }

    /// By the composition, in f64 with autodiff.
    fn expected(&self) -> Results {
        let device = <Wide as BackendTypes>::Device::default();
        let SsdShape {
            batch,
            seq,
            heads,
            head_dim,
            groups,
            d_state,
            ..
        } = self.shape;
        fn leaf<const D: usize>(
            values: &[f64],
            shape: [usize; D],
            device: &<Wide as BackendTypes>::Device,
        ) -> Tensor<Wide, D> {
            let data = TensorData::new(values.to_vec(), shape);
            Tensor::from_data(data, (device, DType::F64))
        }
        let columns = self.shape.columns();
        let xbc = leaf(&self.xbc, [batch, seq, columns], &device).require_grad();
        let dt = leaf(&self.dt, [batch, seq, heads], &device).require_grad();
        let a_log = leaf(&self.a_log, [heads], &device).require_grad();
        let d_skip = leaf(&self.d_skip, [heads], &device).require_grad();
        let (channels, states) = (heads * head_dim, groups * d_state);
        let by_group = |from| {
            let part = xbc.clone().narrow(2, from, states);
            part.reshape([batch, seq, groups, d_state])
        };
        let x = xbc.clone().narrow(2, 0, channels);
        let inputs = composition::SsdInputs {
            x: x.reshape([batch, seq, heads, head_dim]),
            b: by_group(channels),
            c: by_group(channels + states),
            dt: dt.clone(),
            a: -a_log.clone().exp(),
            d_skip: d_skip.clone(),
        };
        let (y, _) = composition::ssd(inputs, 32, None);
        let dy = leaf(&self.dy, [batch, seq, heads, head_dim], &device);
        let grads = (y.clone() * dy).sum().backward();
        fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
            tensor.into_data().iter::<f64>().collect()
        }
        let others = [
            values(dt.grad(&grads).unwrap()),
            values(a_log.grad(&grads).unwrap()),
            values(d_skip.grad(&grads).unwrap()),
        ];
        let dxbc = values(xbc.grad(&grads).unwrap());
        self.results(values(y), &dxbc, others)
    }

    /// By kernels.
    fn got(&self, dtype: DType) -> Option<Results> {
        let device = device()?;
        let SsdShape {
            batch, seq, heads, ..
        } = self.shape;
        let tensor = |values: &[f64], shape: &[usize], dtype| {
            let data = TensorData::new(values.to_vec(), shape.to_vec());
            upload(data.convert_dtype(dtype), &device)
        };
        let inputs = SsdInputs {
            xbc: tensor(&self.xbc, &[batch, seq, self.shape.columns()], dtype),
            dt: tensor(&self.dt, &[batch, seq, heads], DType::F32),
            a_log: tensor(&self.a_log, &[heads], DType::F32),
            d_skip: tensor(&self.d_skip, &[heads], DType::F32),
        };
        let dy = tensor(&self.dy, &[batch, seq, self.shape.channels()], dtype);
        let made = forward(inputs.clone(), &self.shape);
        let grads = backward(inputs, made.saved, dy, &self.shape);
        let others = [&grads.ddt, &grads.da_log, &grads.dd_skip].map(values);
        Some(self.results(values(&made.y), &values(&grads.dxbc), others))
    }
}

fn values(tensor: &burn_nvfp4::kernels::CubeTensor<Runtime>) -> Vec<f64> {
    match tensor.dtype {
        DType::BF16 => download::<bf16>(tensor)
            .iter()
            .map(|v| v.to_f64())
            .collect(),
        DType::F16 => download::<f16>(tensor).iter().map(|v| v.to_f64()).collect(),
        _ => download::<f32>(tensor)
            .iter()
            .map(|v| f64::from(*v))
            .collect(),
    }
}

fn check(shape: SsdShape, largest_dt: f64, dtype: DType) {
    if device().is_none() || !supports(dtype) {
        println!("skipped: no {dtype:?} here");
        return;
    }
    let case = Case::new(shape, largest_dt, dtype);
    let unit = 2.0_f64.powi(-24);
    let rounding = match dtype {
        DType::BF16 => 8.0 * 2.0_f64.powi(-9),
        DType::F16 => 8.0 * 2.0_f64.powi(-12),
        _ => 0.0,
    };
    let bound = 5.0 * 16.0 * unit + unit * case.largest_decay() + rounding;
    let got = case.got(dtype).unwrap();
    for ((name, got), (_, expected)) in got.named.iter().zip(&case.expected().named) {
        assert_eq!(got.len(), expected.len(), "{name} of {shape:?}");
        let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        let worst = got
            .iter()
            .zip(expected)
            .map(|(got, expected)| (got - expected).abs())
            // NaN counts as the worst.
            .fold(0.0_f64, |m, error| if error <= m { m } else { error });
        println!("{dtype:?} {name}: {worst:.3e} of {largest:.3e}, bound {bound:.3e}");
        assert!(
            worst <= bound * largest,
            "{name} of {shape:?}: off by {worst:e} of {largest:e}, bound {bound:e}"
        );
    }
}

/// `[batch, seq, heads, head_dim, groups, d_state, chunk_len]`.
fn shape(lens: [usize; 7]) -> SsdShape {
    let [batch, seq, heads, head_dim, groups, d_state, chunk_len] = lens;
    SsdShape {
        batch,
        seq,
        heads,
        head_dim,
        groups,
        d_state,
        chunk_len,
    }
}

#[test]
fn sequences_that_end_inside_a_chunk() {
    check(shape([2, 40, 4, 8, 2, 8, 16]), 0.1, DType::F32);
    check(shape([1, 100, 3, 12, 1, 20, 32]), 0.1, DType::F32);
}

#[test]
fn sequences_shorter_than_a_chunk() {
    check(shape([3, 5, 2, 8, 1, 8, 128]), 0.1, DType::F32);
    check(shape([1, 1, 2, 4, 2, 4, 256]), 0.1, DType::F32);
}

#[test]
fn head_dim_80_with_256_states() {
    check(shape([1, 70, 2, 80, 1, 256, 256]), 0.1, DType::F32);
}

#[test]
fn several_chunks_of_many_heads() {
    check(shape([2, 300, 36, 4, 4, 4, 128]), 0.1, DType::F32);
}

#[test]
fn decays_that_underflow() {
    check(shape([1, 150, 4, 16, 2, 16, 64]), 40.0, DType::F32);
}

#[test]
fn lengths_of_a_real_layer_in_16_bits() {
    for dtype in [DType::BF16, DType::F16] {
        check(shape([2, 300, 8, 64, 2, 128, 256]), 0.1, dtype);
        check(shape([1, 200, 4, 80, 2, 256, 256]), 0.1, dtype);
    }
}

#[test]
fn every_run_has_the_same_bits() {
    let case = Case::new(shape([2, 150, 6, 16, 3, 16, 64]), 0.1, DType::F32);
    let (Some(first), Some(second)) = (case.got(DType::F32), case.got(DType::F32)) else {
        return;
    };
    for ((name, first), (_, second)) in first.named.iter().zip(&second.named) {
        assert_eq!(first, second, "{name}");
    }
}

#[test]
fn lengths_that_kernels_do_not_take_are_named() {
    for (lens, reason) in [
        (
            [1, 8, 3, 8, 2, 8, 16],
            "ssd: 3 heads cannot be shared out among 2 groups",
        ),
        (
            [1, 8, 2, 6, 2, 8, 16],
            "ssd: head_dim is 6, it has to be a multiple of 4",
        ),
        (
            [1, 0, 2, 8, 2, 8, 16],
            "ssd: seq is 0, it has to be positive",
        ),
    ] {
        assert_eq!(shape(lens).check().unwrap_err(), reason);
    }
}
