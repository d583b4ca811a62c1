//! CubeCL backends: the kernels of [`crate::kernels`].

use burn_backend::DeviceOps;
use burn_backend::tensor::{Device, FloatTensor, IntTensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::server::ComputeServer;

use super::HybridEngine;
use crate::kernels::{self, adamw};
use crate::op::{AdamW, Like, Op, Pass};

impl<R, F, I, BT> HybridEngine for CubeBackend<R, F, I, BT>
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
        kernels::launch(op, pass, inputs, ints)
    }

    fn has_optimizer(_device: &Device<Self>) -> bool {
        true
    }

    fn sum_of_squares(tensors: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        kernels::sum_of_squares::global(&tensors).expect("the caller has an element")
    }

    fn adamw(
        states: Vec<[FloatTensor<Self>; 4]>,
        factor: Option<FloatTensor<Self>>,
        numbers: AdamW,
    ) -> Vec<[FloatTensor<Self>; 3]> {
        let states = states.into_iter().map(adamw::with_gradient).collect();
        let updated = adamw::steps(states, &numbers, factor.as_ref());
        updated.into_iter().map(Into::into).collect()
    }
}
