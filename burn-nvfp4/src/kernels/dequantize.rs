//! From packed tensors back to numbers; the twin of `cpu/dequantize.rs` (numerics §2).
//!
//! [`decode`]: what a GEMM multiplies, code times block scale. [`dequantize`]: what the tensor
//! stands for, code times the whole scale. [`to_host`] and [`from_host`] move packed operands
//! without touching a bit.

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::into_data_sync;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::StorageType;
use cubecl::prelude::*;
use half::bf16;

use super::alpha::{self, AlphaOutput, OperandScale, Pending, write_alpha};
use super::arithmetic::Arithmetic;
use super::e2m1::decode as decode_e2m1;
use super::e4m3::decode as decode_e4m3;
use super::e8m0::decode as decode_e8m0;
use super::group::{GROUP, small};
use super::source::{address_type, array, cubes, empty, optional, units, vector_width, word};
use super::{DecodedTensor, DeviceScales, PackedTensor};
use crate::cpu::Contraction;
use crate::format::{BlockScales, Format, PackedMatrix, TensorScale};

/// What the block scales are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ScaleType {
    None,
    E4m3,
    E8m0,
    F32,
}

/// What codes are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Factor {
    /// The block scale.
    Block,
    /// That, and the scale of the tensor.
    Tensor,
    /// That, and the scale of the row.
    Row,
}

/// All that is known when the kernel is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Unpacking {
    code_bits: u32,
    scales: ScaleType,
    block_rows: u32,
    block_groups: u32,
    factor: Factor,
    /// E2M1 times a scale of one byte to bf16, two elements at a time.
    in_pairs: bool,
}

/// One unit, one group.
#[cube(launch_unchecked, address_type = "dynamic")]
fn unpack<NC: Size, S: Numeric, D: Float, ND: Size>(
    codes: &Array<Vector<u32, NC>>,
    scales: &ComptimeOption<Array<S>>,
    amax: &Array<f32>,
    out: &mut Array<Vector<D, ND>>,
    alpha: &mut ComptimeOption<AlphaOutput>,
    groups: u32,
    count: u32,
    k: u32,
    inverse_q_max: f32,
    cubes: u32,
    #[comptime] unpacking: Unpacking,
    #[define(S)] _scale_dtype: StorageType,
    #[define(D)] _out_dtype: StorageType,
) {
    let per_word = comptime!((32 / unpacking.code_bits) as usize);
    let mask = comptime!((1u32 << unpacking.code_bits) - 1);
    let n = ND::value();
    write_alpha(amax[0], alpha);
    let mut index = u32::cast_from(ABSOLUTE_POS);
    // Two divisions for a unit, none for a group.
    let (mut row, mut group) = (index / groups, index % groups);
    let (rows_on, groups_on) = (cubes * CUBE_DIM / groups, cubes * CUBE_DIM % groups);
    while index < count {
        let block_scale = if comptime!(unpacking.scales == ScaleType::None) {
            1.0f32.runtime()
        } else {
            let (block_rows, block_groups) =
                comptime!((unpacking.block_rows, unpacking.block_groups));
            let at = (row / block_rows) as usize * (groups / block_groups) as usize
                + (group / block_groups) as usize;
            let stored = scales.as_ref().unwrap()[at];
            if comptime!(unpacking.scales == ScaleType::E4m3) {
                decode_e4m3(u32::cast_from(stored))
            } else if comptime!(unpacking.scales == ScaleType::E8m0) {
                decode_e8m0(u32::cast_from(stored))
            } else {
                f32::cast_from(stored)
            }
        };
        let factor = if comptime!(unpacking.factor != Factor::Block) {
            let amax_row = if comptime!(unpacking.factor == Factor::Row) {
                amax[row as usize]
            } else {
                amax[0]
            };
            (block_scale * amax_row) * inverse_q_max
        } else {
            block_scale
        };
        let words = codes[index as usize];
        let col = group * GROUP;
        let start = (row as usize * k as usize + col as usize) / n;
        #[unroll]
        for v in 0..comptime!(GROUP as usize / n) {
            let mut vector = Vector::<D, ND>::empty();
            if comptime!(unpacking.in_pairs) {
                vector = Vector::<D, ND>::cast_from(eight_bf16(words[v], factor));
            } else {
                #[unroll]
                for j in 0..n {
                    let i = comptime!(v * n + j);
                    let word = words[comptime!(i / per_word)];
                    let shift = comptime!(small(i % per_word * (32 / per_word)));
                    let code = (word >> shift) & mask;
                    let value = if comptime!(unpacking.code_bits == 4) {
                        decode_e2m1(code)
                    } else {
                        decode_e4m3(code)
                    };
                    vector[j] = D::cast_from(value * factor);
                }
            }
            if col + comptime!(small(v * n)) < k {
                out[start + v] = vector;
            }
        }
        index += cubes * CUBE_DIM;
        let wraps = group + groups_on >= groups;
        group = group + groups_on - select(wraps, groups, 0u32);
        row += rows_on + select(wraps, 1u32, 0u32);
    }
}

/// The eight E2M1 codes of a word times a scale that bf16 has.
///
/// Exponent and significand of a code, moved to where a bf16 has them, are its value times 2^-126,
/// the subnormal code included. One product moves those of two codes, and one their signs: what
/// the two shifts of a product give does not overlap, so nothing is carried.
#[cube]
fn eight_bf16(word: u32, scale: f32) -> Vector<bf16, Const<8>> {
    let mut pairs = Vector::<u32, Const<4>>::empty();
    #[unroll]
    for i in 0..4usize {
        let two = (word >> comptime!(small(8 * i))) & 0xFFu32;
        let magnitudes = (two * comptime!((1u32 << 6) | (1 << 18))) & 0x01C0_01C0u32;
        let signs = (two * comptime!((1u32 << 12) | (1 << 24))) & 0x8000_8000u32;
        pairs[i] = magnitudes | signs;
    }
    let aligned = Vector::<bf16, Const<8>>::reinterpret(pairs);
    let two_to_126 = Vector::<bf16, Const<8>>::cast_from(bf16::cast_from(8.507_059e37f32));
    let scale = Vector::<bf16, Const<8>>::cast_from(bf16::cast_from(scale));
    aligned * two_to_126 * scale
}

/// Code times block scale, `[rows, padded_k]` in `dtype`: bf16, f16 or f32.
///
/// Exact for NVFP4 and the MX formats in bf16 and f32; with f32 block scales rounded once to f32,
/// and once more to `dtype`.
pub fn decode<R: CubeRuntime>(packed: &PackedTensor<R>, dtype: DType) -> DecodedTensor<R> {
    decode_with(packed, dtype, None)
}

/// [`decode`] for a GEMM whose other operand is there already, with the factor of the two from the
/// same launch; `None` for that where rows have scales of their own or nothing has a scale.
pub fn decode_for<R: CubeRuntime>(
    packed: &PackedTensor<R>,
    dtype: DType,
    other: &OperandScale<R>,
) -> (DecodedTensor<R>, Option<CubeTensor<R>>) {
    let own = packed.scale();
    let has_groups = packed.rows * packed.padded_k > 0;
    let pending = (own.is_single() && has_groups)
        .then(|| Pending::new(&packed.codes, own.amax.is_some(), own.q_max, other))
        .flatten();
    let decoded = decode_with(packed, dtype, pending.as_ref());
    (decoded, pending.map(Pending::into_alpha))
}

fn decode_with<R: CubeRuntime>(
    packed: &PackedTensor<R>,
    dtype: DType,
    alpha: Option<&Pending<R>>,
) -> DecodedTensor<R> {
    let OperandScale { amax, q_max } = packed.scale();
    DecodedTensor {
        values: unpacked(packed, dtype, packed.padded_k, Factor::Block, alpha),
        along: Contraction::Columns,
        amax,
        q_max,
    }
}

/// The values that a packed tensor stands for, f32 `[rows, k]`.
///
/// # Source
/// [`cpu::dequantize`](crate::cpu::dequantize), in the same order of operations.
pub fn dequantize<R: CubeRuntime>(packed: &PackedTensor<R>) -> CubeTensor<R> {
    let factor = if packed.amax.meta.num_elements() > 1 {
        Factor::Row
    } else {
        Factor::Tensor
    };
    unpacked(packed, DType::F32, packed.k, factor, None)
}

fn unpacked<R: CubeRuntime>(
    packed: &PackedTensor<R>,
    dtype: DType,
    k: usize,
    factor: Factor,
    alpha: Option<&Pending<R>>,
) -> CubeTensor<R> {
    let client = packed.codes.client.clone();
    let out = empty(&packed.codes, Shape::new([packed.rows, k]), dtype);
    let count = word(packed.rows * packed.padded_k / GROUP as usize);
    if count == 0 {
        return out;
    }
    let (scale_type, scales) = match (&packed.scales, packed.format) {
        (DeviceScales::None, _) => (ScaleType::None, None),
        (DeviceScales::F32(scales), _) => (ScaleType::F32, Some(scales)),
        (DeviceScales::Bytes(scales), Format::Nvfp4 { .. }) => (ScaleType::E4m3, Some(scales)),
        (DeviceScales::Bytes(scales), Format::Mxfp4 | Format::Mxfp8 | Format::Fp8 { .. }) => {
            (ScaleType::E8m0, Some(scales))
        }
    };
    let block = packed.format.block_dims();
    let width = vector_width(&client, dtype.size(), &[k]);
    let unpacking = Unpacking {
        code_bits: word(packed.format.code_bits()),
        scales: scale_type,
        block_rows: word(block.rows),
        block_groups: word(block.k).div_ceil(GROUP),
        factor,
        in_pairs: packed.format.code_bits() == 4
            && matches!(scale_type, ScaleType::E4m3 | ScaleType::E8m0)
            && (factor, dtype, width) == (Factor::Block, DType::BF16, 8)
            && Arithmetic::of::<R>(&client) == Arithmetic::Ieee,
    };
    let units = units(&client);
    // Few: the memory of an H200 is half again as fast with four writers as with six or more.
    let cubes = cubes(&client, count.div_ceil(units), 4);
    let scale_dtype = scales.map_or(DType::U32, |scales| scales.dtype);
    // SAFETY: `count` groups have codes, scales and amaxes, and beyond `k` nothing is written.
    unsafe {
        crate::kernels::count_launch();
        unpack::launch_unchecked::<R>(
            &client,
            CubeCount::new_1d(cubes),
            CubeDim::new_1d(units),
            address_type(&[&packed.codes, &out]),
            packed.format.code_bits() / 2,
            width,
            array(&packed.codes),
            optional(scales),
            array(&packed.amax),
            array(&out),
            alpha::argument(alpha),
            word(packed.padded_k) / GROUP,
            count,
            word(k),
            1.0 / packed.q_max,
            cubes,
            unpacking,
            scale_dtype.into(),
            dtype.into(),
        );
    }
    out
}

/// Copies a packed tensor to the host. Waits for the device: for inspection, tests and export.
pub fn to_host<R: CubeRuntime>(packed: &PackedTensor<R>) -> PackedMatrix {
    let (rows, k) = (packed.rows, packed.k);
    let codes: Vec<u32> = read(&packed.codes);
    let codes: Vec<u8> = codes.into_iter().flat_map(u32::to_le_bytes).collect();
    // A format without blocks is padded on the device only, to whole groups.
    let block_k = packed.format.block_len();
    let per_byte = 8 / packed.format.code_bits();
    let (wide, narrow) = (
        packed.padded_k / per_byte,
        k.next_multiple_of(block_k) / per_byte,
    );
    let codes = codes
        .chunks(wide.max(1))
        .flat_map(|row| &row[..narrow])
        .copied()
        .collect();
    let bytes = |scales: &CubeTensor<R>| -> Vec<u8> {
        if scales.dtype == DType::U8 {
            read(scales)
        } else {
            let words: Vec<u32> = read(scales);
            words
                .into_iter()
                .map(|word| word.to_le_bytes()[0])
                .collect()
        }
    };
    let block_scales = match (&packed.scales, packed.format) {
        (DeviceScales::None, _) => BlockScales::None,
        (DeviceScales::F32(scales), _) => BlockScales::F32(read(scales)),
        (DeviceScales::Bytes(scales), Format::Nvfp4 { .. }) => BlockScales::E4m3(bytes(scales)),
        (DeviceScales::Bytes(scales), Format::Mxfp4 | Format::Mxfp8 | Format::Fp8 { .. }) => {
            BlockScales::E8m0(bytes(scales))
        }
    };
    let tensor_scale = TensorScale {
        amax: read(&packed.amax),
        q_max: packed.q_max,
    };
    PackedMatrix::from_parts((rows, k), packed.format, codes, block_scales, tensor_scale)
        .expect("a packed tensor has the parts of its format")
}

/// Copies a packed matrix to a device.
pub fn from_host<R: CubeRuntime>(matrix: &PackedMatrix, device: &R::Device) -> PackedTensor<R> {
    let (rows, k, format) = (matrix.rows(), matrix.k(), matrix.format());
    let padded_k = k.next_multiple_of(format.block_len().max(GROUP as usize));
    let per_byte = 8 / format.code_bits();
    let (wide, narrow) = (padded_k / per_byte, matrix.padded_k() / per_byte);
    let mut codes = Vec::with_capacity(rows * wide / 4);
    for row in matrix.codes().chunks(narrow.max(1)) {
        let mut row = row.to_vec();
        row.resize(wide, 0);
        codes.extend(
            row.as_chunks()
                .0
                .iter()
                .map(|&word| u32::from_le_bytes(word)),
        );
    }
    let codes = upload(&codes, [rows, wide / 4].into(), DType::U32, device);
    let block = format.block_dims();
    let shape = [rows.div_ceil(block.rows), padded_k / block.k];
    let scales = match matrix.block_scales() {
        BlockScales::None => DeviceScales::None,
        BlockScales::F32(scales) => {
            DeviceScales::F32(upload(scales, shape.into(), DType::F32, device))
        }
        BlockScales::E4m3(bytes) | BlockScales::E8m0(bytes) => {
            let words: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
            DeviceScales::Bytes(upload(&words, shape.into(), DType::U32, device))
        }
    };
    let amax = &matrix.tensor_scale().amax;
    PackedTensor {
        rows,
        k,
        padded_k,
        format,
        codes,
        scales,
        amax: upload(amax, [amax.len()].into(), DType::F32, device),
        q_max: matrix.tensor_scale().q_max,
    }
}

fn read<R: CubeRuntime, E: burn_backend::Element>(tensor: &CubeTensor<R>) -> Vec<E> {
    if tensor.meta.num_elements() == 0 {
        return Vec::new();
    }
    into_data_sync(tensor.clone())
        .to_vec()
        .expect("the tensor is read as the dtype that it has")
}

fn upload<R: CubeRuntime, E: bytemuck::Pod>(
    values: &[E],
    shape: Shape,
    dtype: DType,
    device: &R::Device,
) -> CubeTensor<R> {
    let client = R::client(device);
    let handle = if values.is_empty() {
        client.empty(size_of::<u64>())
    } else {
        client.create_from_slice(bytemuck::cast_slice(values))
    };
    CubeTensor::new_contiguous(client, device.clone(), shape, handle, dtype)
}
