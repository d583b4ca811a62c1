//! Throughput of the CPU path on operands far larger than any cache.
//!
//! `RAYON_NUM_THREADS=1 cargo bench -p burn-nvfp4 --bench cpu` measures one core; the throughput
//! column counts elements. Each iteration allocates its result, as a training step does.

use burn_nvfp4::cpu::{
    Contraction, MatrixView, dequantize, dequantize_into, quantize, quantize_operand, tensor_amax,
};
use burn_nvfp4::recipe::{
    BlockError, BlockShape, E8m0Rule, ErrorArithmetic, Fp8Scaling, OperandSpec, Rounding,
    ScaleBound, ScaleRule, Transform,
};
use burn_nvfp4::rng::{RandomKey, Stream};
use divan::Bencher;
use divan::counter::ItemsCount;

const ROWS: usize = 8192;
const K: usize = 8192;
const KEY: RandomKey = RandomKey {
    seed: 1,
    step: 2,
    micro_batch: 0,
    stream: Stream::Dgrad,
};

const ROW16: OperandSpec = nvfp4(BlockShape::Row16, ScaleRule::Tensor);
const TILE: OperandSpec = nvfp4(BlockShape::Tile16x16, ScaleRule::Tensor);
const FOUR_OVER_SIX: ScaleRule = ScaleRule::FourOverSix {
    bound: ScaleBound::E4m3At256,
    error: BlockError::Mae,
    arithmetic: ErrorArithmetic::Exact,
};
const MX: OperandSpec = OperandSpec::Mxfp4 {
    scale: E8m0Rule::Floor,
    rounding: Rounding::NearestEven,
    transform: Transform::None,
};

/// Every format, by the name under which the table prints it.
const SPECS: [(&str, OperandSpec); 11] = [
    ("1x16 RNE", ROW16),
    ("16x16 RNE", TILE),
    ("1x16 RHT RNE", ROW16.with_hadamard()),
    ("1x16 SR", ROW16.with_rounding(Rounding::Stochastic)),
    (
        "1x16 RHT SR",
        ROW16.with_hadamard().with_rounding(Rounding::Stochastic),
    ),
    ("1x16 row-scaled", nvfp4(BlockShape::Row16, ScaleRule::Row)),
    (
        "1x16 four-over-six",
        nvfp4(BlockShape::Row16, FOUR_OVER_SIX),
    ),
    ("MXFP4", MX),
    (
        "MXFP8",
        OperandSpec::Mxfp8 {
            scale: E8m0Rule::RoundUp,
        },
    ),
    (
        "FP8 tensor",
        OperandSpec::Fp8 {
            scaling: Fp8Scaling::Tensor,
        },
    ),
    (
        "FP8 128x128",
        OperandSpec::Fp8 {
            scaling: Fp8Scaling::Tile128x128,
        },
    ),
];

const fn nvfp4(block: BlockShape, scale: ScaleRule) -> OperandSpec {
    let (rounding, transform) = (Rounding::NearestEven, Transform::None);
    OperandSpec::Nvfp4 {
        block,
        scale,
        rounding,
        transform,
    }
}

fn main() {
    divan::main();
}

/// Numbers between -1 and 1 with all mantissa bits in use.
fn elements() -> Vec<f32> {
    let step = |state: u32| state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    let states = std::iter::successors(Some(1u32), |&state| Some(step(state)));
    let unit = |state: u32| f32::from_bits(0x3F80_0000 | (state >> 9));
    states
        .map(|state| unit(state) * 2.0 - 3.0)
        .take(ROWS * K)
        .collect()
}

fn spec(name: &str) -> OperandSpec {
    let found = SPECS.iter().find(|(other, _)| *other == name);
    found.expect("the names come from the same list").1
}

fn names() -> impl Iterator<Item = &'static str> {
    SPECS.iter().map(|(name, _)| *name)
}

/// Amax, scales and codes, contraction axis contiguous, and back to f32.
#[divan::bench(args = names(), sample_count = 5, sample_size = 1)]
fn quantize_dequantize(bencher: Bencher<'_, '_>, name: &str) {
    let (x, spec) = (elements(), spec(name));
    bencher.counter(ItemsCount::new(x.len())).bench(|| {
        let view = MatrixView::new(&x, ROWS, K).expect("the shape is that of the data");
        let packed = quantize(view, Contraction::Columns, &spec, KEY).expect("a known spec");
        dequantize(&packed)
    });
}

/// The same into memory that is there already: without the cost of fresh pages.
#[divan::bench(args = names(), sample_count = 5, sample_size = 1)]
fn quantize_dequantize_into(bencher: Bencher<'_, '_>, name: &str) {
    let (x, spec) = (elements(), spec(name));
    let mut values = vec![1.0; x.len()];
    bencher.counter(ItemsCount::new(x.len())).bench_local(|| {
        let view = MatrixView::new(&x, ROWS, K).expect("the shape is that of the data");
        let packed = quantize(view, Contraction::Columns, &spec, KEY).expect("a known spec");
        dequantize_into(&packed, &mut values);
    });
}

/// Amax, scales and codes, contraction over the rows of the matrix: what wgrad needs.
#[divan::bench(args = names(), sample_count = 5, sample_size = 1)]
fn quantize_along_rows(bencher: Bencher<'_, '_>, name: &str) {
    let (x, spec) = (elements(), spec(name));
    bencher.counter(ItemsCount::new(x.len())).bench(|| {
        let view = MatrixView::new(&x, ROWS, K).expect("the shape is that of the data");
        quantize(view, Contraction::Rows, &spec, KEY).expect("a known spec")
    });
}

/// Amax, scales and codes only.
#[divan::bench(args = names(), sample_count = 5, sample_size = 1)]
fn quantize_only(bencher: Bencher<'_, '_>, name: &str) {
    let (x, spec) = (elements(), spec(name));
    bencher.counter(ItemsCount::new(x.len())).bench(|| {
        let view = MatrixView::new(&x, ROWS, K).expect("the shape is that of the data");
        quantize(view, Contraction::Columns, &spec, KEY).expect("a known spec")
    });
}

/// Codes and block scales straight to the f32 operand of an emulated GEMM.
#[divan::bench(args = names(), sample_count = 5, sample_size = 1)]
fn quantize_operand_fused(bencher: Bencher<'_, '_>, name: &str) {
    let (x, spec) = (elements(), spec(name));
    bencher.counter(ItemsCount::new(x.len())).bench(|| {
        let view = MatrixView::new(&x, ROWS, K).expect("the shape is that of the data");
        quantize_operand(view, Contraction::Columns, &spec, KEY).expect("a known spec")
    });
}

/// The amax pass alone: how fast memory is read.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn amax_only(bencher: Bencher<'_, '_>) {
    let x = elements();
    bencher
        .counter(ItemsCount::new(x.len()))
        .bench(|| tensor_amax(&x));
}
