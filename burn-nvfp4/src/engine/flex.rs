//! `Flex`: `cpu` on Flex's own buffers.

use burn_backend::tensor::{Device, FloatTensor};
use burn_backend::{DType, Element, Shape, TensorData};
use burn_flex::{Flex, FlexTensor};
use bytemuck::Pod;
use half::{bf16, f16};

use super::host::{HostMatrix, HostSlice, MemoryOrder};
use super::{Nvfp4Engine, Support, linear};

impl Nvfp4Engine for Flex {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the enum is Burn's; whatever else it gets is no float dtype"
    )]
    fn read_matrix<R>(x: FloatTensor<Self>, read: impl FnOnce(HostMatrix<'_>) -> R) -> R {
        let (x, order) = dense(x);
        match x.dtype() {
            DType::F64 => read(matrix::<f64>(&x, order, HostSlice::F64)),
            DType::BF16 => read(matrix::<bf16>(&x, order, HostSlice::Bf16)),
            DType::F16 => read(matrix::<f16>(&x, order, HostSlice::F16)),
            DType::F32 => read(matrix::<f32>(&x, order, HostSlice::F32)),
            other => unreachable!("{other:?} is not a float dtype of Flex"),
        }
    }

    fn from_values(
        values: Vec<f32>,
        shape: Shape,
        dtype: DType,
        _device: &Device<Self>,
    ) -> FloatTensor<Self> {
        linear::cast::<Self>(FlexTensor::from_data(TensorData::new(values, shape)), dtype)
    }

    fn support(_device: &Device<Self>) -> Support {
        super::IN_PLACE
    }
}

/// The tensor in a layout that is one dense slice: as it is, or copied.
fn dense(x: FlexTensor) -> (FlexTensor, MemoryOrder) {
    let layout = x.layout();
    if layout.is_contiguous() {
        return (x, MemoryOrder::RowMajor);
    }
    if layout.num_dims() == 2 && layout.transpose(0, 1).is_contiguous() {
        return (x, MemoryOrder::ColumnMajor);
    }
    (x.to_contiguous(), MemoryOrder::RowMajor)
}

fn matrix<'a, E: Element + Pod>(
    x: &'a FlexTensor,
    order: MemoryOrder,
    slice: impl FnOnce(&'a [E]) -> HostSlice<'a>,
) -> HostMatrix<'a> {
    let start = x.layout().start_offset();
    let data = &x.storage::<E>()[start..start + x.layout().num_elements()];
    HostMatrix {
        order,
        ..HostMatrix::row_major(slice(data), x.layout().shape())
    }
}
