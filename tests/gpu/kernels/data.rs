//! Every operand spec, and data that is hard on them.

use burn_nvfp4::cpu::{Contraction, Element};
use burn_nvfp4::recipe::Transform;
use burn_nvfp4::recipe::{
    BlockError, BlockShape, E8m0Rule, ErrorArithmetic, Fp8Scaling, OperandSpec, Rounding,
    ScaleBound, ScaleRule, presets,
};
use burn_nvfp4::rng::{RandomKey, Stream, philox4x32_10};

pub(super) const KEY: RandomKey = RandomKey {
    seed: 0x0123_4567_89AB_CDEF,
    step: 0x0FED_CBA9_8765,
    micro_batch: 0,
    stream: Stream::Wgrad,
};
pub(super) const AXES: [Contraction; 2] = [Contraction::Columns, Contraction::Rows];

pub(super) const ROW16: OperandSpec = nvfp4(BlockShape::Row16, ScaleRule::Tensor);
pub(super) const TILE: OperandSpec = nvfp4(BlockShape::Tile16x16, ScaleRule::Tensor);
pub(super) const STOCHASTIC: OperandSpec = ROW16.with_rounding(Rounding::Stochastic);
pub(super) const MXFP4: OperandSpec = mxfp4(E8m0Rule::Floor);
pub(super) const EDEN: OperandSpec = presets::QUARTET2.wgrad.lhs;

pub(super) const fn nvfp4(block: BlockShape, scale: ScaleRule) -> OperandSpec {
    let (rounding, transform) = (Rounding::NearestEven, Transform::None);
    OperandSpec::Nvfp4 {
        block,
        scale,
        rounding,
        transform,
    }
}

pub(super) const fn four_over_six(
    bound: ScaleBound,
    error: BlockError,
    arithmetic: ErrorArithmetic,
) -> ScaleRule {
    ScaleRule::FourOverSix {
        bound,
        error,
        arithmetic,
    }
}

pub(super) const fn mxfp4(scale: E8m0Rule) -> OperandSpec {
    let (rounding, transform) = (Rounding::NearestEven, Transform::None);
    OperandSpec::Mxfp4 {
        scale,
        rounding,
        transform,
    }
}

pub(super) const fn fp8(scaling: Fp8Scaling) -> OperandSpec {
    OperandSpec::Fp8 { scaling }
}

/// One operand of every kind.
pub(super) const SPECS: [OperandSpec; 22] = [
    ROW16,
    STOCHASTIC,
    ROW16.with_hadamard(),
    STOCHASTIC.with_hadamard(),
    TILE,
    TILE.with_rounding(Rounding::Stochastic),
    nvfp4(BlockShape::Row16, ScaleRule::Row),
    nvfp4(
        BlockShape::Row16,
        four_over_six(
            ScaleBound::E4m3At256,
            BlockError::Mae,
            ErrorArithmetic::Exact,
        ),
    ),
    nvfp4(
        BlockShape::Row16,
        four_over_six(
            ScaleBound::E4m3At448,
            BlockError::Mse,
            ErrorArithmetic::Fast,
        ),
    ),
    nvfp4(
        BlockShape::Tile16x16,
        four_over_six(
            ScaleBound::E4m3At448,
            BlockError::Mse,
            ErrorArithmetic::Exact,
        ),
    ),
    nvfp4(
        BlockShape::Tile16x16,
        four_over_six(
            ScaleBound::E4m3At256,
            BlockError::Mae,
            ErrorArithmetic::Fast,
        ),
    ),
    MXFP4,
    mxfp4(E8m0Rule::RoundUp).with_rounding(Rounding::Stochastic),
    MXFP4.with_hadamard(),
    MXFP4.with_rounding(Rounding::Stochastic).with_hadamard(),
    OperandSpec::Mxfp8 {
        scale: E8m0Rule::Floor,
    },
    OperandSpec::Mxfp8 {
        scale: E8m0Rule::RoundUp,
    },
    fp8(Fp8Scaling::Tensor),
    fp8(Fp8Scaling::Row128),
    fp8(Fp8Scaling::Tile128x128),
    mxfp4(E8m0Rule::RoundUp),
    EDEN,
];

/// Independent N(0, 1) numbers: Box-Muller on Philox words.
pub(super) fn normal(seed: u32, n: usize) -> Vec<f32> {
    let unit = |word: u32| (f64::from(word) + 0.5) / 4_294_967_296.0;
    let pair = |u: u32, v: u32| {
        let (radius, angle) = (
            (-2.0 * unit(u).ln()).sqrt(),
            std::f64::consts::TAU * unit(v),
        );
        [radius * angle.cos(), radius * angle.sin()]
    };
    let blocks = (0u32..).flat_map(|block| {
        let [a, b, c, d] = philox4x32_10([block, 0, 0, 0], [seed, 0]);
        [pair(a, b), pair(c, d)]
    });
    blocks
        .flatten()
        .take(n)
        .map(|value: f64| value.to_f32())
        .collect()
}

/// Normal numbers of many magnitudes, with what formats find hard.
pub(super) fn hard_data(n: usize) -> Vec<(String, Vec<f32>)> {
    let x = normal(7, n);
    let mut cases: Vec<_> = [1e-40, 1e-37, 1e-30, 1e-8, 1.0, 1e8, 1e30, 1e37]
        .map(|size| (format!("x {size:e}"), x.iter().map(|v| v * size).collect()))
        .into();
    cases.push(("zeros".to_owned(), vec![0.0; n]));
    cases.push(("minus zeros".to_owned(), vec![-0.0; n]));
    let with = |every: usize, value: f32| {
        let mut x = x.clone();
        x.iter_mut()
            .skip(every / 3)
            .step_by(every)
            .for_each(|x| *x = value);
        x
    };
    cases.push(("one outlier".to_owned(), with(n, 3e4)));
    cases.push(("NaN".to_owned(), with(37, f32::NAN)));
    cases.push(("minus NaN".to_owned(), with(n, -f32::NAN)));
    cases.push(("infinities".to_owned(), with(41, f32::NEG_INFINITY)));
    cases.push(("holes".to_owned(), with(3, 0.0)));
    let wide = x.iter().enumerate();
    let wide = wide.map(|(i, v)| v * f32::from_bits(u32::try_from(i % 200 + 27).unwrap() << 23));
    cases.push(("many binades".to_owned(), wide.collect()));
    cases
}
