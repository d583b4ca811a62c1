//! Tensors as matrices that a kernel can read as they lie in memory.

use burn_backend::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::{cast, into_contiguous};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

use super::arithmetic::Arithmetic;
use super::group::{Access, Elements, GROUP, GeometryLaunch, Tiling};
use super::pairs;
use crate::cpu::Contraction;

/// Units of a cube: sixteen rows of sixteen groups.
const UNITS: u32 = 256;

/// Streaming multiprocessors of a device that does not say how many it has.
const MULTIPROCESSORS: u32 = 16;

/// What a tile has to suit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TileShape {
    /// Groups along the columns, in long rows.
    Lines,
    /// The same, in blocks of sixteen rows.
    Blocks,
    /// Groups along the rows too.
    Square,
}

/// A matrix `[rows, cols]` in device memory whose columns are neighbours.
#[derive(Debug)]
pub(super) struct Source<R: CubeRuntime> {
    pub(super) tensor: CubeTensor<R>,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Elements from one row to the next.
    stride: usize,
    /// The matrix is the transpose of the tensor.
    pub(super) is_transposed: bool,
}

impl<R: CubeRuntime> Source<R> {
    /// The matrix of a tensor, leading dims flattened to rows.
    ///
    /// Rows may lie apart, and a 2-D tensor may be transposed; anything else is copied, and an f64
    /// tensor rounded to f32.
    pub(super) fn new(x: &CubeTensor<R>) -> Self {
        let x = match x.dtype {
            DType::F64 | DType::Flex32 => cast(x.clone(), DType::F32),
            DType::F32
            | DType::F16
            | DType::BF16
            | DType::I64
            | DType::I32
            | DType::I16
            | DType::I8
            | DType::U64
            | DType::U32
            | DType::U16
            | DType::U8
            | DType::Bool(_)
            | DType::QFloat(_) => x.clone(),
        };
        if let Some(source) = Self::in_place(&x) {
            return source;
        }
        let copy = into_contiguous(x);
        let (rows, cols) = flattened(&copy);
        Self {
            tensor: copy,
            rows,
            cols,
            stride: cols,
            is_transposed: false,
        }
    }

    fn in_place(x: &CubeTensor<R>) -> Option<Self> {
        let (rows, cols) = flattened(x);
        if let Some(stride) = row_stride(&x.meta.shape()[..], &x.meta.strides()[..]) {
            return Some(Self {
                tensor: x.clone(),
                rows,
                cols,
                stride,
                is_transposed: false,
            });
        }
        if x.rank() != 2 {
            return None;
        }
        let (shape, strides) = (x.meta.shape(), x.meta.strides());
        let stride = row_stride(&[shape[1], shape[0]], &[strides[1], strides[0]])?;
        Some(Self {
            tensor: x.clone(),
            rows: cols,
            cols: rows,
            stride,
            is_transposed: true,
        })
    }

    /// Elements from one row to the next.
    pub(super) const fn stride(&self) -> usize {
        self.stride
    }

    /// The axis of this matrix that is `along` of the tensor.
    pub(super) const fn along(&self, along: Contraction) -> Contraction {
        if self.is_transposed {
            along.other()
        } else {
            along
        }
    }

    /// The widest vectors, up to `most`, of which the rows of this matrix are whole numbers.
    fn width(&self, most: usize) -> usize {
        let size = self.tensor.dtype.size();
        let offset = usize::try_from(self.tensor.handle.offset_start.unwrap_or(0))
            .expect("an offset into memory fits a usize");
        let lengths = [self.cols, self.stride, offset / size];
        vector_width(&self.tensor.client, size, &lengths).min(most)
    }

    /// Vector width of reads along the columns.
    pub(super) fn columns_width(&self) -> usize {
        self.width(GROUP as usize)
    }

    /// Neighbouring columns that a unit reads along the rows.
    pub(super) fn rows_width(&self) -> usize {
        self.width(2)
    }

    /// The array argument for reads as `access` has them, and its vector width.
    pub(super) fn argument(&self, along: Contraction) -> (usize, ArrayArg<R>) {
        let width = match along {
            Contraction::Columns => self.columns_width(),
            Contraction::Rows => self.rows_width(),
        };
        (width, array(&self.tensor))
    }

    /// How a job reads this matrix.
    pub(super) fn access(
        &self,
        along: Contraction,
        tiling: Tiling,
        arithmetic: Arithmetic,
    ) -> Access {
        let (k, width) = match along {
            Contraction::Columns => (self.cols, 1),
            Contraction::Rows => (self.rows, word(self.rows_width())),
        };
        Access {
            along,
            width,
            whole: k.is_multiple_of(GROUP as usize),
            elements: self.elements(along, arithmetic),
            tiling,
            arithmetic,
        }
    }

    fn elements(&self, along: Contraction, arithmetic: Arithmetic) -> Elements {
        let in_pairs = along == Contraction::Columns
            && self.columns_width() == pairs::VECTOR
            && arithmetic == Arithmetic::Ieee;
        match (self.tensor.dtype, in_pairs) {
            (DType::BF16, true) => Elements::Bf16Pairs,
            (DType::BF16, false) => Elements::Bf16,
            _ => Elements::Wider,
        }
    }

    /// Tiles of a shape.
    pub(super) fn tiling(&self, shape: TileShape) -> Tiling {
        let units = units(&self.tensor.client);
        if shape == TileShape::Square {
            // Four groups along the rows by as many columns as there are units left.
            let cols = units / 4 * word(self.rows_width());
            return Tiling {
                units,
                rows: 64,
                cols,
            };
        }
        let rows = if shape == TileShape::Blocks {
            16
        } else {
            units / 32
        };
        Tiling {
            units,
            rows,
            cols: units * GROUP / rows,
        }
    }

    /// The shape of this matrix and the tiles that cover `[rows, cols]` of it, as arguments.
    pub(super) fn geometry(
        &self,
        along: Contraction,
        tiling: Tiling,
        covered: [usize; 2],
    ) -> (GeometryLaunch<R>, u32) {
        let (width, _) = self.argument(along);
        let across = covered[1].div_ceil(tiling.cols as usize);
        let down = covered[0].div_ceil(tiling.rows as usize);
        let launch = GeometryLaunch::new(
            word(self.rows),
            word(self.cols),
            word(self.stride / width),
            word(across),
            word(down),
        );
        (launch, word(down * across))
    }
}

/// Rows and columns of a tensor, leading dims flattened.
fn flattened<R: CubeRuntime>(x: &CubeTensor<R>) -> (usize, usize) {
    match &x.meta.shape()[..] {
        [] => (1, 1),
        [leading @ .., cols] => (leading.iter().product(), *cols),
    }
}

/// The distance of the rows, if there is one distance and their elements are neighbours.
fn row_stride(shape: &[usize], strides: &[usize]) -> Option<usize> {
    let ([leading @ .., cols], [leading_strides @ .., last]) = (shape, strides) else {
        return Some(1);
    };
    if *cols > 1 && *last != 1 {
        return None;
    }
    let mut rows = leading
        .iter()
        .zip(leading_strides)
        .rev()
        .filter(|(len, _)| **len != 1);
    let Some((len, stride)) = rows.next() else {
        return Some(*cols);
    };
    let mut next = len * stride;
    for (len, stride) in rows {
        if *stride != next {
            return None;
        }
        next *= len;
    }
    // Rows that overlap are a broadcast view; its zero strides are left to the copy.
    (*stride >= *cols).then_some(*stride)
}

/// The widest vectors of elements of `size` bytes that divide all lengths.
pub(super) fn vector_width<R: CubeRuntime>(
    client: &ComputeClient<R>,
    size: usize,
    lengths: &[usize],
) -> usize {
    client
        .io_optimized_vector_sizes(size)
        .find(|width| {
            *width <= GROUP as usize && lengths.iter().all(|len| len.is_multiple_of(*width))
        })
        .unwrap_or(1)
}

/// Units of a cube.
pub(super) fn units<R: CubeRuntime>(client: &ComputeClient<R>) -> u32 {
    // 128 units still hold a pair of groups and four groups along the rows.
    let most = client.properties().hardware.max_units_per_cube;
    if most >= UNITS { UNITS } else { 128 }
}

/// Cubes for so many tiles: enough to fill the device, each of which takes tile after tile.
pub(super) fn cubes<R: CubeRuntime>(client: &ComputeClient<R>, tiles: u32, per_sm: u32) -> u32 {
    let sms = client.properties().hardware.num_streaming_multiprocessors;
    tiles.clamp(1, sms.unwrap_or(MULTIPROCESSORS) * per_sm)
}

/// A whole tensor as an array, whatever its strides.
pub(super) fn array<R: CubeRuntime>(tensor: &CubeTensor<R>) -> ArrayArg<R> {
    let bytes = usize::try_from(tensor.handle.size_in_used())
        .expect("a buffer that was allocated has a length that fits a usize");
    // SAFETY: the length is that of the buffer.
    unsafe { ArrayArg::from_raw_parts(tensor.handle.clone(), bytes / tensor.dtype.size()) }
}

/// Whether indices into these tensors fit 32 bits.
pub(super) fn address_type<R: CubeRuntime>(tensors: &[&CubeTensor<R>]) -> AddressType {
    let types = tensors.iter().map(|tensor| tensor.required_address_type());
    types.max().unwrap_or(AddressType::U32)
}

/// A length as a kernel argument.
///
/// # Panics
/// Beyond 2^32: rows, columns and groups are counted in 32 bits, elements are not.
pub(super) fn word(length: usize) -> u32 {
    u32::try_from(length).expect("rows, columns and tiles of a tensor are counted in 32 bits")
}

/// A new tensor on the device of another; one without elements gets memory all the same.
pub(super) fn empty<R: CubeRuntime>(
    like: &CubeTensor<R>,
    shape: Shape,
    dtype: DType,
) -> CubeTensor<R> {
    let (client, device) = (like.client.clone(), like.device.clone());
    if shape.num_elements() == 0 {
        let handle = client.empty(size_of::<u64>());
        return CubeTensor::new_contiguous(client, device, shape, handle, dtype);
    }
    empty_device_contiguous_dtype(client, device, shape, dtype)
}

/// An argument that a kernel may do without.
pub(super) fn optional<R: CubeRuntime, T>(
    tensor: Option<&CubeTensor<R>>,
) -> ComptimeOptionArgs<Array<T>, R>
where
    T: CubePrimitive,
{
    match tensor {
        Some(tensor) => ComptimeOptionArgs::Some(array(tensor)),
        None => ComptimeOptionArgs::None,
    }
}
