//! The device under test: the feature chooses the runtime, the runtime its default device.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use burn::tensor::backend::{Backend, BackendTypes};
use burn::tensor::{DType, TensorData};
use burn_nvfp4::kernels::{CubeBackend, CubeTensor};

#[cfg(all(feature = "cuda", not(feature = "wgpu")))]
pub(crate) type Runtime = burn_nvfp4::kernels::CudaRuntime;
#[cfg(feature = "wgpu")]
pub(crate) type Runtime = burn::backend::wgpu::WgpuRuntime;

/// The backend without fusion.
pub(crate) type Base = CubeBackend<Runtime, f32, i32, u32>;

pub(crate) type Device = <Base as BackendTypes>::Device;

/// The device, or `None` if there is none and nobody insists; then it says why.
///
/// # Panics
/// Without a device, if `NVFP4_REQUIRE_DEVICE` is set.
pub(crate) fn device() -> Option<Device> {
    static WHY_NOT: OnceLock<Option<String>> = OnceLock::new();
    // A runtime without a driver or an adapter panics where it is first used.
    let why_not = WHY_NOT.get_or_init(|| {
        let first_use = || {
            let x = upload(TensorData::new(vec![1.0_f32], [1]), &Device::default());
            assert_eq!(download::<f32>(&x), [1.0]);
        };
        catch_unwind(AssertUnwindSafe(first_use))
            .err()
            .map(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
                    .unwrap_or_else(|| "the runtime panicked".to_owned())
            })
    });
    match why_not {
        None => Some(Device::default()),
        Some(why) => {
            assert!(
                std::env::var_os("NVFP4_REQUIRE_DEVICE").is_none(),
                "NVFP4_REQUIRE_DEVICE is set and there is no device: {why}"
            );
            println!("skipped: {why}");
            None
        }
    }
}

/// True if tensors of a dtype can be made on the device.
pub(crate) fn supports(dtype: DType) -> bool {
    Base::supports_dtype(&Device::default(), dtype)
}

/// A dense tensor: CUDA pads the rows of what it gets with two axes, not with one.
pub(crate) fn upload(data: TensorData, device: &Device) -> CubeTensor<Runtime> {
    use burn::tensor::ops::{FloatTensorOps, IntTensorOps};
    let shape = data.shape.clone();
    let flat = TensorData {
        shape: [shape.num_elements()].into(),
        ..data
    };
    let tensor = if flat.dtype.is_float() {
        Base::float_from_data(flat, device)
    } else {
        Base::int_from_data(flat, device)
    };
    CubeTensor::new_contiguous(
        tensor.client,
        tensor.device,
        shape,
        tensor.handle,
        tensor.dtype,
    )
}

pub(crate) fn download<E: burn::tensor::Element>(tensor: &CubeTensor<Runtime>) -> Vec<E> {
    use burn::tensor::ops::{FloatTensorOps, IntTensorOps};
    if tensor.meta.num_elements() == 0 {
        return vec![];
    }
    let data = if tensor.dtype.is_float() {
        burn::tensor::read_sync(Base::float_into_data(tensor.clone()))
    } else {
        burn::tensor::read_sync(Base::int_into_data(tensor.clone()))
    };
    data.unwrap().to_vec().unwrap()
}
