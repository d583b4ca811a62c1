//! `Fusion<CubeBackend>`: one recorded operation a pass.

use burn_backend::tensor::{Device, FloatTensor, IntTensor};
use burn_backend::{DType, DeviceOps, Shape};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::Fusion;
use burn_nvfp4::engine::record;
use cubecl::server::ComputeServer;

use super::{HybridEngine, first, likes};
use crate::kernels;
use crate::op::{AdamW, Like, Op, Pass};

impl<R, F, I, BT> HybridEngine for Fusion<CubeBackend<R, F, I, BT>>
where
    R: CubeRuntime,
    R::Server: ComputeServer,
    R::Device: DeviceOps,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
    fn has_kernel(op: &Op, inputs: &[Like], device: &Device<Self>) -> bool {
        kernels::supports::<R>(op, inputs, device)
    }

    fn launch(
        op: &Op,
        pass: Pass,
        inputs: Vec<FloatTensor<Self>>,
        ints: Vec<IntTensor<Self>>,
    ) -> Vec<FloatTensor<Self>> {
        let outputs = kernels::outputs(op, pass, &likes(&inputs));
        let floats = inputs.len();
        let op = op.clone();
        // On CubeCL backends float and integer tensors are one type, so they travel together.
        let all = inputs.into_iter().chain(ints).collect();
        record::<CubeBackend<R, F, I, BT>>(op.name(pass), all, outputs, move |mut tensors| {
            let ints = tensors.split_off(floats);
            kernels::launch(&op, pass, tensors, ints)
        })
    }

    fn has_optimizer(_device: &Device<Self>) -> bool {
        true
    }

    fn sum_of_squares(tensors: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        let sum = vec![(Shape::new([1]), DType::F32)];
        let name = "hybrid::sum_of_squares";
        first(record::<CubeBackend<R, F, I, BT>>(
            name,
            tensors,
            sum,
            |tensors| {
                let sum = kernels::sum_of_squares::global(&tensors);
                vec![sum.expect("the caller has an element")]
            },
        ))
    }

    fn adamw(tensors: [FloatTensor<Self>; 4], numbers: AdamW) -> [FloatTensor<Self>; 3] {
        let outputs = likes(&tensors[..3]);
        let update = move |tensors: Vec<_>| {
            let count = tensors.len();
            let tensors = tensors.try_into();
            let tensors = tensors.unwrap_or_else(|_| panic!("adamw takes 4 tensors, not {count}"));
            kernels::adamw::update(tensors, numbers).into()
        };
        let made =
            record::<CubeBackend<R, F, I, BT>>("hybrid::adamw", tensors.into(), outputs, update);
        made.try_into()
            .unwrap_or_else(|_| unreachable!("three outputs were recorded"))
    }
}
