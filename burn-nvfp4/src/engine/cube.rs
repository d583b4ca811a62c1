//! CubeCL backends (`Wgpu`, `Vulkan`, `Metal`, `Cuda`, `Rocm`), with and without fusion: the
//! portable defaults, on a host copy of each operand.

use burn_backend::DeviceOps;
use burn_cubecl::{BoolElement, CubeBackend, CubeRuntime, FloatElement, IntElement};
use burn_fusion::{Fusion, FusionBackend};
use cubecl::server::ComputeServer;

use super::Nvfp4Engine;

impl<R, F, I, BT> Nvfp4Engine for CubeBackend<R, F, I, BT>
where
    R: CubeRuntime,
    R::Server: ComputeServer,
    R::Device: DeviceOps,
    F: FloatElement,
    I: IntElement,
    BT: BoolElement,
{
}

impl<B: FusionBackend + Nvfp4Engine> Nvfp4Engine for Fusion<B> {}
