//! The device functions on their own: division and random words.

use burn::tensor::TensorData;
use burn_nvfp4::kernels::{arithmetic, philox};
use burn_nvfp4::rng::philox4x32_10;

use super::bits;
use crate::device::{device, download, upload};

#[test]
fn quotients_are_those_of_ieee() {
    let Some(device) = device() else { return };
    let edges = [
        0,
        1,
        2,
        0x007F_FFFF,
        0x0080_0000,
        0x0080_0001,
        0x3F7F_FFFF,
        0x3F80_0000,
        0x3F80_0001,
        0x4528_0000,
        0x7F7F_FFFF,
        0x7F80_0000,
        0x7FC0_0000,
        0x8000_0000,
        0x8000_0001,
        0xBF80_0000,
        0xFF80_0000,
        0x0000_1234,
        0x7E80_0000,
        0x0100_0000,
    ];
    let mut pairs: Vec<(u32, u32)> = Vec::new();
    pairs.extend(
        edges
            .iter()
            .flat_map(|&a| edges.iter().map(move |&b| (a, b))),
    );
    for i in 0..60_000u32 {
        let [a, b, c, d] = philox4x32_10([i, 1, 0, 0], [0; 2]);
        // Any bits; numbers of like size; a quotient that falls into the subnormals.
        pairs.push((a, b));
        pairs.push((c & 0x007F_FFFF | 0x3F80_0000, d & 0x007F_FFFF | 0x3F80_0000));
        pairs.push((c & 0x03FF_FFFF, d & 0x00FF_FFFF | 0x4400_0000));
    }
    let of = |bits: Vec<u32>| -> Vec<f32> { bits.into_iter().map(f32::from_bits).collect() };
    let (a, b): (Vec<u32>, Vec<u32>) = pairs.into_iter().unzip();
    let (a, b) = (of(a), of(b));
    let n = a.len();
    let up = |x: &[f32]| upload(TensorData::new(x.to_vec(), [n]), &device);
    let got: Vec<f32> = download(&arithmetic::quotients(&up(&a), &up(&b)));
    let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
    let wrong = (0..n).find(|&i| bits(&got[i..=i]) != bits(&expected[i..=i]));
    let shown = wrong.map(|i| (a[i], b[i], got[i], expected[i]));
    assert_eq!(shown, None, "a, b, got, expected");
}

#[test]
fn random_words_are_those_of_the_cpu() {
    let Some(device) = device() else { return };
    let counters: Vec<[u32; 4]> = (0..1000).map(|i| philox4x32_10([i; 4], [5; 2])).collect();
    let key = [0x89AB_CDEF, 0xFFFF_FFFF];
    let data = TensorData::new(counters.concat(), [counters.len(), 4]);
    let got: Vec<u32> = download(&philox::words(&upload(data, &device), key));
    let expected: Vec<_> = counters
        .iter()
        .map(|&counter| philox4x32_10(counter, key))
        .collect();
    assert_eq!(got, expected.concat());
}
