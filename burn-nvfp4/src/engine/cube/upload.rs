//! A packed matrix from host memory, as the kernels read it.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use crate::format::{BlockScales, PackedMatrix};
use crate::kernels::{DeviceScales, PackedTensor, bytes_dtype, scale_shape};

/// Copies codes, scales and amax to `device`.
pub(super) fn upload<R: CubeRuntime>(matrix: &PackedMatrix, device: &R::Device) -> PackedTensor<R> {
    let client = R::client(device);
    let tensor = |bytes: &[u8], shape: Shape, dtype: DType| {
        let handle = client.create_from_slice(bytes);
        CubeTensor::new_contiguous(client.clone(), device.clone(), shape, handle, dtype)
    };
    let (rows, format) = (matrix.rows(), matrix.format());
    let words = matrix.padded_k() * format.code_bits() / 32;
    let scale_shape = scale_shape(format, rows, matrix.padded_k());
    let scales = match matrix.block_scales() {
        BlockScales::None => DeviceScales::None,
        BlockScales::E4m3(bytes) | BlockScales::E8m0(bytes) => {
            let dtype = bytes_dtype(&client);
            let scales = if dtype == DType::U8 {
                tensor(bytes, scale_shape, dtype)
            } else {
                let words = bytes.iter().flat_map(|&byte| u32::from(byte).to_ne_bytes());
                tensor(&words.collect::<Vec<_>>(), scale_shape, dtype)
            };
            DeviceScales::Bytes(scales)
        }
        BlockScales::F32(scales) => DeviceScales::F32(tensor(
            bytemuck::cast_slice(scales),
            scale_shape,
            DType::F32,
        )),
    };
    let amax = &matrix.tensor_scale().amax;
    PackedTensor {
        rows,
        k: matrix.k(),
        padded_k: matrix.padded_k(),
        format,
        q_max: matrix.tensor_scale().q_max,
        // The first code is in the lowest nibble of a word.
        codes: tensor(matrix.codes(), Shape::new([rows, words]), DType::U32),
        scales,
        amax: tensor(
            bytemuck::cast_slice(amax),
            Shape::new([amax.len()]),
            DType::F32,
        ),
    }
}
