//! Norms on a device: RMSNorm as an operation, the gated norm of groups as kernels.

use burn::backend::Autodiff;
use burn::prelude::*;
use burn::tensor::DType;
use burn::tensor::backend::AutodiffBackend;
use burn_hybrid_ops::kernels::gated_group_norm::{self, Inputs};
use burn_hybrid_ops::{HybridEngine, ops};
use burn_nvfp4_models::config::params::{Init, ParamSpec};
use burn_nvfp4_models::nn::norm::{GatedGroupNorm, RmsNorm};
use burn_nvfp4_models::nn::source::ParamSource;

use crate::activations::{
    Margins, Reference, assert_close, dense, dtypes, exact, host, reference, slice, sliced, values,
};
use crate::turns::{Fused, Plain, exclusive};

const EPS: f64 = 1e-5;

/// Calls `make` with a source of one parameter, `norm.weight`.
fn with_weight<T>(weight: &[f32], make: impl FnOnce(&mut ParamSource<'_, Reference>) -> T) -> T {
    let spec = ParamSpec {
        name: "norm.weight".into(),
        shape: vec![weight.len()],
        init: Init::Normal { std: 1.0 },
    };
    let mut data = |_: &ParamSpec| TensorData::new(weight.to_vec(), [weight.len()]);
    make(&mut ParamSource::new(
        vec![spec],
        &Default::default(),
        &mut data,
    ))
}

/// Result and gradients of an RMSNorm by the kernels of a backend.
fn rms_norm<B: AutodiffBackend + HybridEngine>(
    [x, weight, dy]: [&[f32]; 3],
    shape: [usize; 3],
    dtype: DType,
    output: DType,
) -> [Vec<f64>; 3] {
    let device = B::Device::default();
    let tensor = |values: &[f32], dtype| {
        Tensor::<B, 3>::from_data(TensorData::new(values.to_vec(), shape), (&device, dtype))
    };
    let x = tensor(x, dtype).require_grad();
    let weight = TensorData::new(weight.to_vec(), [shape[2]]);
    let weight = Tensor::<B, 1>::from_data(weight, (&device, DType::F32)).require_grad();
    let y = ops::rms_norm(&x, &weight, EPS, output).expect("a device has kernels");
    assert_eq!(y.dtype(), output);
    let grads = (y.clone() * tensor(dy, output)).sum().backward();
    let dx = x.grad(&grads).unwrap();
    assert_eq!(dx.dtype(), dtype);
    [exact(y), exact(dx), exact(weight.grad(&grads).unwrap())]
}

/// Kills: eps outside the root, a sum that leaves out the last vectors of a row, rows that a cube
/// does not come to, a gradient without the term through the root.
#[test]
fn rms_norm_and_its_gradients_are_the_compositions() {
    let Some(_turn) = exclusive() else { return };
    for shape in [
        [2, 3, 7],
        [1, 1, 5],
        [2, 300, 10],
        [3, 5, 1028],
        [1, 2, 4100],
    ] {
        let [batch, seq, channels] = shape;
        for dtype in dtypes() {
            let len = batch * seq * channels;
            let x = values(len, 2.0, 1, DType::F32);
            let weight = values(channels, 1.5, 2, DType::F32);
            let dy = values(len, 1.0, 3, dtype);
            let norm = with_weight(&weight, |source| RmsNorm::new(source, "norm", EPS));
            let input = reference(&x, shape);
            let expected = norm.forward(input.clone(), DType::F64);
            let grads = (expected.clone() * reference(&dy, shape)).sum().backward();
            let expected = [
                exact(expected),
                exact(input.grad(&grads).unwrap()),
                exact(norm.weight.val().grad(&grads).unwrap()),
            ];
            // The residual stream stays f32, whatever the activations are.
            let given: [&[f32]; 3] = [&x, &weight, &dy];
            let plain = rms_norm::<Autodiff<Plain>>(given, shape, DType::F32, dtype);
            let fused = rms_norm::<Autodiff<Fused>>(given, shape, DType::F32, dtype);
            assert_eq!(plain, fused, "fusion changes bits for {shape:?}");
            for (i, name) in ["y", "dx", "dweight"].iter().enumerate() {
                let dtype = if i == 0 { dtype } else { DType::F32 };
                assert_close(
                    &plain[i],
                    &expected[i],
                    dtype,
                    &format!("{name}, {shape:?}"),
                );
            }
        }
    }
}

/// The same with activations of one narrow dtype throughout.
#[test]
fn rms_norm_of_narrow_activations_rounds_once() {
    let Some(_turn) = exclusive() else { return };
    let shape = [2, 5, 72];
    for dtype in dtypes() {
        let x = values(720, 2.0, 1, dtype);
        let weight = values(72, 1.5, 2, DType::F32);
        let dy = values(720, 1.0, 3, dtype);
        let norm = with_weight(&weight, |source| RmsNorm::new(source, "norm", EPS));
        let input = reference(&x, shape);
        let expected = norm.forward(input.clone(), DType::F64);
        let grads = (expected.clone() * reference(&dy, shape)).sum().backward();
        let [y, dx, dweight] = rms_norm::<Autodiff<Plain>>([&x, &weight, &dy], shape, dtype, dtype);
        assert_close(&y, &exact(expected), dtype, "y");
        assert_close(&dx, &exact(input.grad(&grads).unwrap()), dtype, "dx");
        let expected = exact(norm.weight.val().grad(&grads).unwrap());
        assert_close(&dweight, &expected, DType::F32, "dweight");
    }
}

/// Kills: one group for all channels, the gate behind the norm, a gradient of the gate beside its
/// slice.
#[test]
fn gated_group_norm_and_its_gradients_are_the_compositions() {
    let Some(_turn) = exclusive() else { return };
    let device = Default::default();
    for (shape, n_groups, margins) in [
        ([2, 3, 14], 2, Margins(3, 2)),
        ([1, 1, 9], 3, Margins(0, 1)),
        ([2, 300, 16], 2, Margins(4, 12)),
        ([3, 5, 2112], 3, Margins(8, 8)),
        ([1, 3, 4096], 1, Margins(4, 4)),
    ] {
        let [batch, seq, channels] = shape;
        let len = batch * seq * channels;
        for dtype in dtypes() {
            let what = format!("{shape:?} in {n_groups} groups");
            let y = values(len, 2.0, 1, dtype);
            let z = values(len, 3.0, 2, dtype);
            let dout = values(len, 1.0, 3, dtype);
            let weight = values(channels, 1.5, 4, DType::F32);
            let norm = with_weight(&weight, |source| {
                GatedGroupNorm::new(source, "norm", n_groups, EPS)
            });
            let inputs = [reference(&y, shape), reference(&z, shape)];
            let [ry, rz] = inputs.clone();
            let expected = norm.forward(ry, rz, DType::F64);
            let grads = (expected.clone() * reference(&dout, shape))
                .sum()
                .backward();
            let [ry, rz] = inputs.map(|input| exact(input.grad(&grads).unwrap()));

            let y = dense(&y, shape, dtype, &device);
            let z = slice(&z, shape, margins, dtype, &device);
            let weight = dense(&weight, [channels], DType::F32, &device);
            let inputs = Inputs {
                y: &y,
                z: &z,
                weight: &weight,
                n_groups,
                eps: EPS,
            };
            let (out, rstd) = gated_group_norm::forward(&inputs, dtype);
            assert_close(
                &host(&out),
                &exact(expected),
                dtype,
                &format!("out, {what}"),
            );
            let dout = dense(&dout, shape, dtype, &device);
            let dz = slice(&vec![9.0; len], shape, margins, dtype, &device);
            let (dy, dweight) = gated_group_norm::backward(&inputs, &rstd, &dout, &dz);
            assert_close(&host(&dy), &ry, dtype, &format!("dy, {what}"));
            assert_close(&sliced(&dz, margins), &rz, dtype, &format!("dz, {what}"));
            let expected = exact(norm.weight.val().grad(&grads).unwrap());
            let what = format!("dweight, {what}");
            assert_close(&host(&dweight), &expected, DType::F32, &what);
        }
    }
}
