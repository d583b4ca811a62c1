//! The operations that differ between devices although IEEE 754 says what they give.
//!
//! CUDA and HIP divide correctly rounded, keep subnormals, and return the number if one operand of
//! `min` or `max` is NaN. WGSL promises none of the three: its division is off by up to 2.5 ULP.
//! `Arithmetic` is a comptime choice between the device's own operation and one made of integer
//! operations, whose bits no device can change. Every function here gives the same bits either way.
//!
//! What is still asked of a device that is not IEEE: that a single f32 addition, subtraction or
//! multiplication is rounded to nearest, ties to even. Subnormal numbers stay what they are on all
//! devices that were tried; one that flushes them gives other bits where a tensor's amax lies below
//! about 1e-35 or an element below 1e-38.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::prelude::*;

use super::source::{array, units, word};

/// `f32::INFINITY`; the bits of every NaN are larger, once the sign is gone.
pub(super) const INFINITY: u32 = 0x7F80_0000;
/// `f32::MAX`.
const LARGEST: u32 = 0x7F7F_FFFF;
/// All bits but the sign.
pub(super) const MAGNITUDE: u32 = 0x7FFF_FFFF;
const SIGN: u32 = 0x8000_0000;

/// Whose division, minimum and maximum a kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Arithmetic {
    /// The device's: IEEE 754 division, NaN-skipping `min` and `max`.
    Ieee,
    /// Integer operations.
    Portable,
}

impl Arithmetic {
    /// What the devices of a runtime can be trusted with.
    pub(super) fn of<R: CubeRuntime>(client: &ComputeClient<R>) -> Self {
        let name = R::name(client);
        if ["cuda", "hip", "cpu"]
            .iter()
            .any(|ieee| name.starts_with(ieee))
        {
            Self::Ieee
        } else {
            Self::Portable
        }
    }
}

/// `a / b`, correctly rounded.
#[cube]
pub(super) fn divide(a: f32, b: f32, #[comptime] arithmetic: Arithmetic) -> f32 {
    if comptime!(arithmetic == Arithmetic::Ieee) {
        a / b
    } else {
        divide_by_integers(a, b)
    }
}

/// `a / b`, correctly rounded whatever the device's division is worth.
///
/// 1. Both significands are brought to `[2^23, 2^24)`, subnormals included, the left one once
///    more so that the quotient lies in `[1, 2)`.
/// 2. A device division of the two estimates the first 25 bits of the quotient; off by at most 6
///    units. From 8 below the estimate, four compare-and-subtract steps on the exact remainder end
///    at the true quotient.
/// 3. Rounding to nearest, ties to even, with the remainder as sticky bit; into subnormals too.
#[cube]
fn divide_by_integers(a: f32, b: f32) -> f32 {
    let ua = u32::reinterpret(a) & MAGNITUDE;
    let ub = u32::reinterpret(b) & MAGNITUDE;
    let sign = (u32::reinterpret(a) ^ u32::reinterpret(b)) & SIGN;
    let ma_unshifted = significand(ua);
    let mb = significand(ub);
    let below_one = ma_unshifted < mb;
    let ma = select(below_one, ma_unshifted << 1u32, ma_unshifted);
    // Biased by 127 and by another 512, so that it is never negative.
    let exponent = 639u32 + exponent(ua) - exponent(ub) - select(below_one, 1u32, 0u32);

    let estimate = u32::cast_from(f32::cast_from(ma) / f32::cast_from(mb) * 16_777_216.0f32);
    let mut quotient = estimate - 8u32;
    // Modulo 2^32, of which the true remainder, below 16 mb, needs 28 bits.
    let mut rest = (ma << 24u32) - quotient * mb;
    #[unroll]
    for step in 0..4u32 {
        let times = comptime!(8u32 >> step);
        let fits = rest >= mb * times;
        rest -= select(fits, mb * times, 0u32);
        quotient += select(fits, times, 0u32);
    }

    let normal = exponent > 512u32;
    // One bit beyond the significand; more where the result is subnormal.
    let below = select(
        normal,
        1u32,
        u32::min(514u32 - u32::min(exponent, 512u32), 27u32),
    );
    let kept = quotient >> below;
    let cut = quotient & ((1u32 << below) - 1u32);
    let half = 1u32 << (below - 1u32);
    let odd_or_more = (rest != 0u32) || ((kept & 1u32) == 1u32);
    let up = (cut > half) || ((cut == half) && odd_or_more);
    let base = select(normal, (exponent - 513u32) << 23u32, 0u32);
    let rounded = base + kept + select(up, 1u32, 0u32);
    let finite = select(exponent >= 767u32, INFINITY, rounded);

    let infinite = (ua == INFINITY) || (ub == 0u32);
    let zero = (ua == 0u32) || (ub == INFINITY);
    let nan = (ua > INFINITY) || (ub > INFINITY) || (infinite && zero);
    let result = select(infinite, INFINITY, select(zero, 0u32, finite));
    f32::reinterpret(select(nan, 0x7FC0_0000u32, result | sign))
}

/// The significand of a magnitude, its leading bit at 2^23; 2^23 for zero.
#[cube]
fn significand(magnitude: u32) -> u32 {
    let normal = (magnitude & 0x007F_FFFFu32) | 0x0080_0000u32;
    let shift = u32::leading_zeros(magnitude | 1u32) - 8u32;
    let subnormal = (magnitude | select(magnitude == 0u32, 1u32, 0u32)) << shift;
    select(magnitude < 0x0080_0000u32, subnormal, normal)
}

/// The exponent field that goes with [`significand`]; below 1 (modulo 2^32) for subnormals.
#[cube]
fn exponent(magnitude: u32) -> u32 {
    let shift = u32::leading_zeros(magnitude | 1u32) - 8u32;
    select(magnitude < 0x0080_0000u32, 1u32 - shift, magnitude >> 23u32)
}

/// `max(|x|, amax)`; keeps `amax` if `x` is NaN.
#[cube]
pub(super) fn larger(x: f32, amax: f32, #[comptime] arithmetic: Arithmetic) -> f32 {
    if comptime!(arithmetic == Arithmetic::Ieee) {
        f32::max(f32::abs(x), amax)
    } else {
        let magnitude = u32::reinterpret(x) & MAGNITUDE;
        let number = select(magnitude > INFINITY, 0u32, magnitude);
        f32::reinterpret(u32::max(number, u32::reinterpret(amax)))
    }
}

/// `min(x, f32::MAX)` of a number that is not negative.
#[cube]
pub(super) fn at_most_largest(x: f32) -> f32 {
    f32::reinterpret(u32::min(u32::reinterpret(x), LARGEST))
}

/// A product that is about to be added to: the compiler must not contract the two to one fma.
///
/// `zero` is a runtime argument; no compiler knows that the XOR changes nothing.
#[cube]
pub(super) fn rounded_product(a: f32, b: f32, zero: u32) -> f32 {
    f32::reinterpret(u32::reinterpret(a * b) ^ zero)
}

/// The quotients of two f32 tensors of one shape, element by element, as the kernels divide: the
/// bits of IEEE 754 on every device.
///
/// # Panics
/// If the shapes differ.
pub fn quotients<R: CubeRuntime>(a: &CubeTensor<R>, b: &CubeTensor<R>) -> CubeTensor<R> {
    assert_eq!(a.meta.shape(), b.meta.shape(), "one divisor per dividend");
    let (a, b) = (into_contiguous(a.clone()), into_contiguous(b.clone()));
    let client = a.client.clone();
    let out = empty_device_contiguous_dtype(
        client.clone(),
        a.device.clone(),
        a.meta.shape().clone(),
        DType::F32,
    );
    let units = units(&client);
    let len = word(a.meta.num_elements());
    // SAFETY: units beyond `len`, the length of all three, do nothing.
    unsafe {
        quotient_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::new_1d(len.div_ceil(units)),
            CubeDim::new_1d(units),
            array(&a),
            array(&b),
            array(&out),
            len,
            Arithmetic::of::<R>(&client),
        );
    }
    out
}

#[cube(launch_unchecked)]
fn quotient_kernel(
    a: &Array<f32>,
    b: &Array<f32>,
    out: &mut Array<f32>,
    len: u32,
    #[comptime] arithmetic: Arithmetic,
) {
    let i = ABSOLUTE_POS;
    if i < len as usize {
        out[i] = divide(a[i], b[i], arithmetic);
    }
}
