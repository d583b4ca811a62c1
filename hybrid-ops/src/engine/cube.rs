//! CubeCL backends: the kernels of [`crate::kernels`].

use burn_backend::DeviceOps;
use burn_backend::tensor::{Device, FloatTensor, IntTensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use cubecl::server::ComputeServer;

use super::HybridEngine;
use crate::kernels;
use crate::op::{Like, Op, Pass};

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
}
