//! `DistributedBackend`, forwarded, so that burn-train's data parallelism synchronises on `B`.
//!
//! Burn keys its synchronisation server by the backend type. Every method goes to `B`, so the
//! server, its clients and the tensors they exchange all belong to `B`.

#![deny(clippy::missing_trait_methods)]

use burn_backend::DeviceId;
use burn_backend::distributed::{
    CollectiveTensor, DistributedBackend, DistributedConfig, DistributedParams, ReduceOperation,
    TensorRef,
};
use burn_backend::tensor::{Device, FloatTensor};

use crate::decorator::backend::Nvfp4;
use crate::decorator::forward::forward;
use crate::decorator::rewrap::Rewrap;
use crate::engine::Nvfp4Engine;

impl<B: DistributedBackend + Nvfp4Engine> Rewrap<TensorRef<B>> for TensorRef<Nvfp4<B>> {
    fn rewrap(self) -> TensorRef<B> {
        TensorRef(self.0)
    }
}

impl<B: DistributedBackend + Nvfp4Engine> Rewrap<TensorRef<B>> for &TensorRef<Nvfp4<B>> {
    fn rewrap(self) -> TensorRef<B> {
        TensorRef(self.0)
    }
}

impl<B: DistributedBackend + Nvfp4Engine> Rewrap<CollectiveTensor<Nvfp4<B>>>
    for CollectiveTensor<B>
{
    fn rewrap(self) -> CollectiveTensor<Nvfp4<B>> {
        // SAFETY: the handle goes straight into another `CollectiveTensor`, so nothing reads it
        // before that one is resolved, which synchronises the same device through `B`.
        CollectiveTensor::new(unsafe { self.assume_resolved() })
    }
}

impl<B: DistributedBackend + Nvfp4Engine> DistributedBackend for Nvfp4<B> {
    forward! { DistributedBackend;
        fn start_communication_server(devices: &[Self::Device], config: DistributedConfig);
        fn close_communication_server(device: &Self::Device);
        fn register_sync_parameters(
            device: &Self::Device,
            distributed_params: Vec<DistributedParams>,
        );
        fn submit_sync_collective(device: &Self::Device);
        fn sync_collective(device: &Self::Device);
    }

    forward! { DistributedBackend => rewrap;
        fn all_reduce(
            tensor: FloatTensor<Self>,
            op: ReduceOperation,
            device_ids: Vec<DeviceId>,
        ) -> CollectiveTensor<Self>;
    }

    fn submit_gradient_sync(tensor: TensorRef<Self>, distributed_params: DistributedParams) {
        <B as DistributedBackend>::submit_gradient_sync(tensor.rewrap(), distributed_params)
    }

    unsafe fn comm_device(tensor: &TensorRef<Self>) -> Device<Self> {
        // SAFETY: the caller keeps the tensor unused meanwhile, as `B` demands.
        unsafe { <B as DistributedBackend>::comm_device(&tensor.rewrap()) }
    }

    unsafe fn float_from_ref(tensor: &TensorRef<Self>) -> FloatTensor<Self> {
        // SAFETY: the caller keeps the tensor unused meanwhile, as `B` demands.
        unsafe { <B as DistributedBackend>::float_from_ref(&tensor.rewrap()) }
    }
}
