//! The type [`Nvfp4<B>`](Nvfp4) as a [`Backend`], and as an [`AutodiffBackend`] where `B` is one.

#![deny(clippy::missing_trait_methods)]

use std::marker::PhantomData;

#[cfg(feature = "distributed")]
use burn_backend::distributed::{DistributedParamId, DistributedParams};
use burn_backend::tensor::{BoolTensor, FloatTensor, IntTensor, QuantizedTensor};
use burn_backend::{
    AutodiffBackend, Backend, BackendTypes, DType, DTypeUsageSet, ExecutionError, TensorData,
};

use crate::decorator::forward::forward;
use crate::engine::Nvfp4Engine;

/// A backend decorator: `B` with linear layers that run on quantized operands.
///
/// Which operands, and how, says the recipe that holds when a layer is called. With the
/// high-precision recipe every op gives the same bits as on `B`.
///
/// `Nvfp4<Autodiff<B>>` is the order to train in: backward sees the recipe of forward and saves
/// packed operands. `Autodiff<Nvfp4<B>>` works too. `Nvfp4<B>` alone is for inference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nvfp4<B>(PhantomData<B>);

impl<B: Nvfp4Engine> BackendTypes for Nvfp4<B> {
    type Device = B::Device;
    type FloatTensorPrimitive = B::FloatTensorPrimitive;
    type FloatElem = B::FloatElem;
    type IntTensorPrimitive = B::IntTensorPrimitive;
    type IntElem = B::IntElem;
    type BoolTensorPrimitive = B::BoolTensorPrimitive;
    type BoolElem = B::BoolElem;
    type QuantizedTensorPrimitive = B::QuantizedTensorPrimitive;
}

impl<B: Nvfp4Engine> Backend for Nvfp4<B> {
    forward! { Backend;
        fn ad_enabled(device: &Self::Device) -> bool;
        fn memory_cleanup(device: &Self::Device);
        fn sync(device: &Self::Device) -> Result<(), ExecutionError>;
        fn supports_dtype(device: &Self::Device, dtype: DType) -> bool;
        fn dtype_usage(device: &Self::Device, dtype: DType) -> DTypeUsageSet;
        fn device_count(type_id: u16) -> usize;
    }

    fn name(device: &Self::Device) -> String {
        format!("nvfp4<{}>", B::name(device))
    }

    fn seed(device: &Self::Device, seed: u64) {
        crate::runtime::set_seed::<B>(device, seed);
        B::seed(device, seed);
    }

    fn memory_persistent_allocations<
        Output: Send,
        Input: Send,
        Func: Fn(Input) -> Output + Send,
    >(
        device: &Self::Device,
        input: Input,
        func: Func,
    ) -> Output {
        <B as Backend>::memory_persistent_allocations(device, input, func)
    }

    fn staging<'a, Iter>(data: Iter, device: &Self::Device)
    where
        Iter: Iterator<Item = &'a mut TensorData>,
    {
        <B as Backend>::staging(data, device);
    }
}

impl<B: AutodiffBackend + Nvfp4Engine> AutodiffBackend for Nvfp4<B>
where
    B::InnerBackend: Nvfp4Engine,
{
    type InnerBackend = Nvfp4<B::InnerBackend>;
    type Gradients = B::Gradients;

    forward! { AutodiffBackend;
        fn backward(tensor: FloatTensor<Self>) -> Self::Gradients;
        fn grad(
            tensor: &FloatTensor<Self>,
            grads: &Self::Gradients,
        ) -> Option<FloatTensor<Self::InnerBackend>>;
        fn grad_remove(
            tensor: &FloatTensor<Self>,
            grads: &mut Self::Gradients,
        ) -> Option<FloatTensor<Self::InnerBackend>>;
        fn grad_replace(
            tensor: &FloatTensor<Self>,
            grads: &mut Self::Gradients,
            grad: FloatTensor<Self::InnerBackend>,
        );
        fn inner(tensor: FloatTensor<Self>) -> FloatTensor<Self::InnerBackend>;
        fn int_inner(tensor: IntTensor<Self>) -> IntTensor<Self::InnerBackend>;
        fn bool_inner(tensor: BoolTensor<Self>) -> BoolTensor<Self::InnerBackend>;
        fn q_inner(tensor: QuantizedTensor<Self>) -> QuantizedTensor<Self::InnerBackend>;
        fn from_inner(tensor: FloatTensor<Self::InnerBackend>) -> FloatTensor<Self>;
        fn int_from_inner(tensor: IntTensor<Self::InnerBackend>) -> IntTensor<Self>;
        fn bool_from_inner(tensor: BoolTensor<Self::InnerBackend>) -> BoolTensor<Self>;
        fn q_from_inner(tensor: QuantizedTensor<Self::InnerBackend>) -> QuantizedTensor<Self>;
    }

    #[cfg(feature = "distributed")]
    forward! { AutodiffBackend;
        fn set_distributed_params(
            tensor: FloatTensor<Self>,
            param_id: DistributedParamId,
        ) -> FloatTensor<Self>;
        fn distributed_params(tensor: &FloatTensor<Self>) -> Option<DistributedParams>;
        fn is_distributed(tensor: &FloatTensor<Self>) -> bool;
    }
}
