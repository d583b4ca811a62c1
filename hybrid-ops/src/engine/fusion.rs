//! `Fusion<CubeBackend>`: one recorded operation a pass.

use burn_backend::DeviceOps;
use burn_backend::tensor::{Device, FloatTensor, IntTensor};
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::Fusion;
use burn_nvfp4::engine::record;
use cubecl::server::ComputeServer;

use super::{HybridEngine, likes};
use crate::kernels;
use crate::op::{Like, Op, Pass};

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
}
