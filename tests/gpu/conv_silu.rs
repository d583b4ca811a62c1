//! The inputs of a Mamba-2 scan: the convolution with its activation, and the step size.

use burn::module::Param;
use burn::tensor::DType;
use burn_hybrid_ops::kernels::{conv_silu, step_size};
use burn_nvfp4_models::nn::activation::{silu, softplus};
use burn_nvfp4_models::nn::conv::CausalConv1d;

use crate::activations::{
    Margins, assert_close, dense, dtypes, exact, host, reference, slice, sliced, values,
};
use crate::turns::exclusive;

/// Kills: a tap that meets another token, a sequence that sees the one before it, a gradient that
/// lacks the tokens at the seam of two runs, a write beside the slice.
#[test]
fn convolution_and_its_gradients_are_the_compositions() {
    let Some(_turn) = exclusive() else { return };
    let device = Default::default();
    for ([batch, seq, channels], taps, margins) in [
        // Shorter than the taps, channels that no vector divides.
        ([2, 3, 7], 4, Margins(3, 2)),
        ([1, 1, 2], 2, Margins(0, 0)),
        // Several runs of tokens and cubes, more than one strip of channels.
        ([2, 300, 36], 4, Margins(8, 4)),
        ([3, 37, 132], 4, Margins(4, 1)),
        ([1, 70, 6], 3, Margins(2, 2)),
    ] {
        for dtype in dtypes() {
            for has_bias in [true, false] {
                let what = format!("{batch}x{seq}x{channels}, {taps} taps, bias {has_bias}");
                let shape = [batch, seq, channels];
                let len = batch * seq * channels;
                let x = values(len, 2.0, 1, dtype);
                let dy = values(len, 1.0, 2, dtype);
                let weight = values(channels * taps, 0.7, 3, DType::F32);
                let bias = values(channels, 0.7, 4, DType::F32);

                let conv = CausalConv1d {
                    weight: Param::from_tensor(reference(&weight, [channels, 1, taps])),
                    bias: has_bias.then(|| Param::from_tensor(reference(&bias, [channels]))),
                };
                let input = reference(&x, shape);
                let expected = silu(conv.forward(input.clone(), None).0);
                let grads = (expected.clone() * reference(&dy, shape)).sum().backward();

                let x = slice(&x, shape, margins, dtype, &device);
                let dy = dense(&dy, shape, dtype, &device);
                let weight = dense(&weight, [channels, 1, taps], DType::F32, &device);
                let bias = has_bias.then(|| dense(&bias, [channels], DType::F32, &device));
                let y = conv_silu::forward(&x, &weight, bias.as_ref());
                assert_close(&host(&y), &exact(expected), dtype, &format!("y, {what}"));

                let dx = slice(&vec![9.0; len], shape, margins, dtype, &device);
                let (dweight, dbias) = conv_silu::backward(&x, &weight, bias.as_ref(), &dy, &dx);
                let expected = exact(input.grad(&grads).unwrap());
                assert_close(
                    &sliced(&dx, margins),
                    &expected,
                    dtype,
                    &format!("dx, {what}"),
                );
                let expected = exact(conv.weight.val().grad(&grads).unwrap());
                let what = format!("dweight, {what}");
                assert_close(&host(&dweight), &expected, DType::F32, &what);
                assert_eq!(dbias.is_some(), has_bias);
                if let (Some(dbias), Some(bias)) = (dbias, conv.bias) {
                    let expected = exact(bias.val().grad(&grads).unwrap());
                    assert_close(&host(&dbias), &expected, DType::F32, "dbias");
                }
            }
        }
    }
}

/// Kills: a bound that lets its gradient through, a bias of another head.
#[test]
fn step_size_and_its_gradients_are_the_compositions() {
    let Some(_turn) = exclusive() else { return };
    let device = Default::default();
    for ([batch, seq, heads], margins) in [
        ([2, 5, 7], Margins(3, 1)),
        ([1, 300, 64], Margins(4, 8)),
        ([2, 70, 132], Margins(4, 4)),
    ] {
        for dtype in dtypes() {
            for (min, max) in [(0.0_f32, None), (0.4, Some(2.5))] {
                let what = format!("{batch}x{seq}x{heads} in {min} to {max:?}");
                let shape = [batch, seq, heads];
                let len = batch * seq * heads;
                let dt = values(len, 6.0, 1, dtype);
                let bias = values(heads, 1.0, 2, DType::F32);
                let grad = values(len, 1.0, 3, DType::F32);

                let (input, input_bias) = (reference(&dt, shape), reference(&bias, [heads]));
                let free = softplus(input.clone() + input_bias.clone().unsqueeze());
                let above = if min > 0.0 { free.clamp_min(min) } else { free };
                let expected = match max {
                    Some(max) => above.clamp_max(max),
                    None => above,
                };
                let grads = (expected.clone() * reference(&grad, shape))
                    .sum()
                    .backward();

                let dt = slice(&dt, shape, margins, dtype, &device);
                let bias = dense(&bias, [heads], DType::F32, &device);
                let grad = dense(&grad, shape, DType::F32, &device);
                let limits = step_size::Limits { min, max };
                let got = host(&step_size::forward(&dt, &bias, limits));
                assert_close(&got, &exact(expected), DType::F32, &what);

                let into = slice(&vec![9.0; len], shape, margins, dtype, &device);
                let dbias = step_size::backward(&dt, &bias, limits, &grad, &into);
                let expected = exact(input.grad(&grads).unwrap());
                assert_close(
                    &sliced(&into, margins),
                    &expected,
                    dtype,
                    &format!("ddt, {what}"),
                );
                let expected = exact(input_bias.grad(&grads).unwrap());
                let what = format!("dbias, {what}");
                assert_close(&host(&dbias), &expected, DType::F32, &what);
            }
        }
    }
}
