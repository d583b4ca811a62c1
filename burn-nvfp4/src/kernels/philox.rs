//! Philox4x32-10 on the device; the twin of [`rng`](crate::rng) (numerics §5).

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::source::{array, units, word};

/// The words of a random key; runtime arguments, so that a new step needs no new kernel.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct KeyWords {
    /// Low half of the seed.
    pub(super) seed_low: u32,
    /// High half of the seed.
    pub(super) seed_high: u32,
    /// Low half of the step.
    pub(super) step_low: u32,
    /// Stream, and bits 32 to 43 of the step from bit 20 on.
    pub(super) last: u32,
}

/// The sixteen random bytes of a block, as four words.
#[derive(CubeType, Clone, Copy)]
pub(super) struct RandomBytes {
    /// Elements 0 to 3.
    pub(super) w0: u32,
    /// Elements 4 to 7.
    pub(super) w1: u32,
    /// Elements 8 to 11.
    pub(super) w2: u32,
    /// Elements 12 to 15.
    pub(super) w3: u32,
}

/// Four random words for a counter and a key.
#[cube]
pub(super) fn philox4x32_10(c0: u32, c1: u32, c2: u32, c3: u32, k0: u32, k1: u32) -> RandomBytes {
    let mut c0 = c0;
    let mut c1 = c1;
    let mut c2 = c2;
    let mut c3 = c3;
    let mut k0 = k0;
    let mut k1 = k1;
    #[unroll]
    for _ in 0..10u32 {
        let low0 = c0 * 0xD251_1F53u32;
        let high0 = u32::mul_hi(c0, 0xD251_1F53u32);
        let low1 = c2 * 0xCD9E_8D57u32;
        let high1 = u32::mul_hi(c2, 0xCD9E_8D57u32);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E37_79B9u32;
        k1 += 0xBB67_AE85u32;
    }
    RandomBytes {
        w0: c0,
        w1: c1,
        w2: c2,
        w3: c3,
    }
}

/// The random bytes of one 16-element block; `amax` is that of the tensor as it is quantized.
///
/// `block` is below 2^32: a tensor of 2^36 elements would need more.
#[cube]
pub(super) fn block_bytes(key: &KeyWords, amax: f32, block: u32) -> RandomBytes {
    philox4x32_10(
        block,
        key.step_low,
        u32::reinterpret(amax),
        key.last,
        key.seed_low,
        key.seed_high,
    )
}

/// The random byte of an element.
#[cube]
pub(super) fn byte(bytes: &RandomBytes, #[comptime] element: u32) -> u32 {
    let word = if comptime!(element < 4) {
        bytes.w0
    } else if comptime!(element < 8) {
        bytes.w1
    } else if comptime!(element < 12) {
        bytes.w2
    } else {
        bytes.w3
    };
    (word >> comptime!(element % 4 * 8)) & 0xFFu32
}

#[cube]
impl RandomBytes {
    /// For roundings that draw none.
    pub(super) fn none() -> RandomBytes {
        RandomBytes {
            w0: 0u32.runtime(),
            w1: 0u32.runtime(),
            w2: 0u32.runtime(),
            w3: 0u32.runtime(),
        }
    }
}

/// The four random words of every counter, u32 `[n, 4]`, for a counter tensor u32 `[n, 4]`.
pub fn words<R: CubeRuntime>(counters: &CubeTensor<R>, key: [u32; 2]) -> CubeTensor<R> {
    let counters = into_contiguous(counters.clone());
    let client = counters.client.clone();
    let out = empty_device_contiguous_dtype(
        client.clone(),
        counters.device.clone(),
        counters.meta.shape().clone(),
        DType::U32,
    );
    let units = units(&client);
    let len = word(counters.meta.num_elements() / 4);
    // SAFETY: units beyond `len` do nothing, and both tensors have four words for each of `len`.
    unsafe {
        words_kernel::launch_unchecked::<R>(
            &client,
            CubeCount::new_1d(len.div_ceil(units)),
            CubeDim::new_1d(units),
            array(&counters),
            array(&out),
            len,
            key[0],
            key[1],
        );
    }
    out
}

#[cube(launch_unchecked)]
fn words_kernel(counters: &Array<u32>, out: &mut Array<u32>, len: u32, k0: u32, k1: u32) {
    if ABSOLUTE_POS < len as usize {
        let at = ABSOLUTE_POS * 4;
        let drawn = philox4x32_10(
            counters[at],
            counters[at + 1],
            counters[at + 2],
            counters[at + 3],
            k0,
            k1,
        );
        out[at] = drawn.w0;
        out[at + 1] = drawn.w1;
        out[at + 2] = drawn.w2;
        out[at + 3] = drawn.w3;
    }
}
