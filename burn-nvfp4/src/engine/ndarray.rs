//! `NdArray`: `cpu` on ndarray's own buffers.

use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{DType, Shape, TensorMetadata};
use burn_ndarray::{
    FloatNdArrayElement, IntNdArrayElement, NdArray, NdArrayTensor, QuantElement, SharedArray,
};

use super::host::{HostMatrix, HostSlice, MemoryOrder};
use super::{Nvfp4Engine, Support, linear};

impl<E, I, Q> Nvfp4Engine for NdArray<E, I, Q>
where
    E: FloatNdArrayElement,
    I: IntNdArrayElement,
    Q: QuantElement,
    NdArrayTensor: From<SharedArray<E>>,
    NdArrayTensor: From<SharedArray<I>>,
{
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the enum is Burn's; whatever else it gets is no float dtype"
    )]
    fn read_matrix<R>(x: FloatTensor<Self>, read: impl FnOnce(HostMatrix<'_>) -> R) -> R {
        /// Reads row-major and transposed 2-D arrays in place; any other layout is copied.
        macro_rules! read {
            ($storage:expr, $slice:path) => {{
                let shape = x.shape();
                let view = $storage.view();
                if let Some(data) = view.to_slice() {
                    return read(HostMatrix::row_major($slice(data), &shape));
                }
                if let (2, Some(data)) = (view.ndim(), view.clone().reversed_axes().to_slice()) {
                    let order = MemoryOrder::ColumnMajor;
                    let data = $slice(data);
                    return read(HostMatrix {
                        data,
                        rows: shape[0],
                        cols: shape[1],
                        order,
                    });
                }
                let copy = view.as_standard_layout();
                let data = copy.as_slice().expect("standard layout is one slice");
                read(HostMatrix::row_major($slice(data), &shape))
            }};
        }
        match &x {
            NdArrayTensor::F32(storage) => read!(storage, HostSlice::F32),
            NdArrayTensor::F64(storage) => read!(storage, HostSlice::F64),
            other => unreachable!("{:?} is not a float dtype of NdArray", other.dtype()),
        }
    }

    fn from_values(
        values: Vec<f32>,
        shape: Shape,
        dtype: DType,
        _device: &Device<Self>,
    ) -> FloatTensor<Self> {
        let dims: Vec<usize> = (0..shape.num_dims()).map(|dim| shape[dim]).collect();
        let array = SharedArray::<f32>::from_shape_vec(dims, values)
            .expect("the caller gives as many values as the shape holds");
        linear::cast::<Self>(NdArrayTensor::from(array), dtype)
    }

    fn support(_device: &Device<Self>) -> Support {
        super::IN_PLACE
    }
}
