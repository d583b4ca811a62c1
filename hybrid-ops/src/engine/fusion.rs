//! `Fusion<CubeBackend>`: one recorded operation a pass.

use burn_backend::tensor::{Device, FloatTensor, IntTensor};
use burn_backend::{DType, DeviceOps, Shape};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::Fusion;
use burn_nvfp4::engine::record;
use cubecl::server::ComputeServer;

use super::{HybridEngine, first, likes};
use crate::kernels::{self, adamw};
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

    fn adamw(
        states: Vec<[FloatTensor<Self>; 4]>,
        factor: Option<FloatTensor<Self>>,
        numbers: AdamW,
    ) -> Vec<[FloatTensor<Self>; 3]> {
        let outputs = states.iter().flat_map(|state| likes(&state[..3])).collect();
        let count = states.len();
        let all = states.into_iter().flatten().chain(factor).collect();
        let update = move |tensors: Vec<_>| {
            let mut tensors = tensors.into_iter();
            let states = (0..count).map(|_| adamw::with_gradient(take(&mut tensors)));
            let states = states.collect();
            let updated = adamw::steps(states, &numbers, tensors.next().as_ref());
            updated.into_iter().flat_map(<[_; 3]>::from).collect()
        };
        let made = record::<CubeBackend<R, F, I, BT>>("hybrid::adamw", all, outputs, update);
        let mut made = made.into_iter();
        (0..count).map(|_| take(&mut made)).collect()
    }
}

/// The next `N` of some tensors that are known to be there.
fn take<T, const N: usize>(tensors: &mut impl Iterator<Item = T>) -> [T; N] {
    std::array::from_fn(|_| tensors.next().expect("as many as were recorded"))
}
