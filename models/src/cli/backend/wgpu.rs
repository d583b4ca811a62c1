//! What a device of wgpu needs, looked for before Burn does: it answers with a panic on a server's
//! thread.

use burn::backend::wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use burn::backend::wgpu::{WgpuDevice, WgpuRuntime};
use cubecl_runtime::runtime::Runtime;

/// CubeCL's number for discrete GPUs among the kinds of device.
const DISCRETE: u16 = 0;

/// The device with an index.
pub(super) fn device(index: usize) -> WgpuDevice {
    match index {
        0 => WgpuDevice::DefaultDevice,
        index => WgpuDevice::DiscreteGpu(index),
    }
}

/// Checks that there is an adapter, and one with this index.
///
/// # Errors
/// One line: what is missing, and what would be right.
pub(super) fn check(index: usize) -> Result<(), String> {
    let api = AutoGraphicsApi::backend();
    if WgpuRuntime::enumerate_all_devices(&api).is_empty() {
        return Err(format!(
            "--backend wgpu: {api:?} finds no graphics adapter; install the driver of the GPU, or \
             one in software (mesa-vulkan-drivers), or take --backend ndarray or flex"
        ));
    }
    // Device 0 is the best one, whatever its kind.
    let discrete = WgpuRuntime::enumerate_devices(DISCRETE, &api).len();
    if index > 0 && index >= discrete {
        return Err(match discrete {
            0 | 1 => format!("--device {index}: there is only device 0"),
            _ => format!("--device {index}: there are devices 0 to {}", discrete - 1),
        });
    }
    Ok(())
}
