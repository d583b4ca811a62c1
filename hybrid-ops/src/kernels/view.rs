//! Activations as they lie in memory: rows of neighbouring channels, at any distance.
//!
//! The outputs of one projection are slices of one buffer: a slice is read in place, and its
//! gradient written in place into the gradient of the whole. The kernel gets the whole buffer and
//! adds where the slice starts, for devices bind buffers at multiples of 256 bytes only.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::AddressType;
use cubecl::prelude::*;

/// `[batch, seq, channels]` in a buffer, neighbouring channels side by side.
#[derive(Debug)]
pub(super) struct View<R: CubeRuntime> {
    /// The tensor, without an offset into its buffer.
    tensor: CubeTensor<R>,
    pub(super) batch: usize,
    pub(super) seq: usize,
    pub(super) channels: usize,
    /// Where the first element is, and from one sequence and one row to the next; in elements.
    offset: usize,
    batch_stride: usize,
    row_stride: usize,
}

/// A [`View`] for a kernel, in vectors: where rows start.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Rows {
    offset: usize,
    /// Rows of a sequence.
    pub(super) seq: usize,
    batch_stride: usize,
    row_stride: usize,
}

/// Where a row starts; rows of all sequences are counted in one.
#[cube]
pub(super) fn row_start(rows: &Rows, row: usize) -> usize {
    rows.offset + row / rows.seq * rows.batch_stride + row % rows.seq * rows.row_stride
}

/// Where a row of a sequence starts.
#[cube]
pub(super) fn token_start(rows: &Rows, batch: usize, token: usize) -> usize {
    rows.offset + batch * rows.batch_stride + token * rows.row_stride
}

impl<R: CubeRuntime> View<R> {
    /// A tensor to read, leading axes before the last two flattened to one; copied if its channels
    /// are no neighbours or its rows do not follow one rule.
    pub(super) fn read(tensor: &CubeTensor<R>) -> Self {
        Self::in_place(tensor).unwrap_or_else(|| {
            Self::in_place(&into_contiguous(tensor.clone()))
                .expect("a contiguous tensor has one distance of rows")
        })
    }

    /// A tensor to write to.
    ///
    /// # Panics
    /// If its channels are no neighbours.
    pub(super) fn written(tensor: &CubeTensor<R>) -> Self {
        Self::in_place(tensor).unwrap_or_else(|| {
            panic!("a kernel writes rows of neighbouring channels, not {tensor:?}")
        })
    }

    fn in_place(tensor: &CubeTensor<R>) -> Option<Self> {
        let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
        let rank = shape.num_dims();
        let axis = |back: usize| match rank.checked_sub(back) {
            Some(axis) => (shape[axis], strides[axis]),
            None => (1, 0),
        };
        let ((channels, step), (seq, row_stride)) = (axis(1), axis(2));
        if channels > 1 && step != 1 {
            return None;
        }
        // Axes before the last two, innermost first, have to be one.
        let (mut batch, mut batch_stride) = (1, 0);
        for back in 3..=rank {
            let (len, stride) = axis(back);
            if len != 1 && batch != 1 && stride != batch * batch_stride {
                return None;
            }
            if len != 1 && batch == 1 {
                batch_stride = stride;
            }
            batch *= len;
        }
        let mut whole = tensor.clone();
        let bytes = whole.handle.offset_start.take().unwrap_or(0);
        whole.handle.offset_end = None;
        let bytes = usize::try_from(bytes).expect("an offset into memory fits a usize");
        Some(Self {
            offset: bytes / tensor.dtype.size(),
            batch,
            seq,
            channels,
            batch_stride,
            row_stride: if seq == 1 { 0 } else { row_stride },
            tensor: whole,
        })
    }

    /// Rows of all sequences.
    pub(super) const fn rows(&self) -> usize {
        self.batch * self.seq
    }

    /// The longest vector of at most 16 bytes of which rows are whole numbers, wherever they start.
    pub(super) fn width(&self) -> usize {
        let steps = [
            self.channels,
            self.offset,
            self.batch_stride,
            self.row_stride,
        ];
        let mut widths = self
            .tensor
            .client
            .io_optimized_vector_sizes(self.tensor.dtype.size());
        widths
            .find(|width| steps.iter().all(|step| step.is_multiple_of(*width)))
            .unwrap_or(1)
    }

    /// The whole buffer.
    pub(super) fn array(&self) -> ArrayArg<R> {
        let bytes = usize::try_from(self.tensor.handle.size())
            .expect("a buffer that was allocated has a length that fits a usize");
        let len = bytes / self.tensor.dtype.size();
        // SAFETY: the length is that of the buffer.
        unsafe { ArrayArg::from_raw_parts(self.tensor.handle.clone(), len) }
    }

    /// Where its rows are, in vectors of `width` elements.
    pub(super) fn launch(&self, width: usize) -> RowsLaunch<R> {
        RowsLaunch::new(
            self.offset / width,
            self.seq,
            self.batch_stride / width,
            self.row_stride / width,
        )
    }

    /// Whether indices into the buffer fit 32 bits.
    pub(super) fn address_type(&self) -> AddressType {
        self.tensor.required_address_type()
    }

    /// Panics unless the other view has the same rows and channels.
    pub(super) fn assert_like(&self, other: &Self, what: &str) {
        assert_eq!(
            (self.rows(), self.channels),
            (other.rows(), other.channels),
            "{what}: rows and channels"
        );
    }
}

/// The width that suits all views.
pub(super) fn common_width<R: CubeRuntime>(views: &[&View<R>]) -> usize {
    views.iter().map(|view| view.width()).min().unwrap_or(1)
}

/// Whether indices into all buffers fit 32 bits.
pub(super) fn address_type<R: CubeRuntime>(views: &[&View<R>]) -> AddressType {
    let types = views.iter().map(|view| view.address_type());
    types.max().unwrap_or(AddressType::U32)
}
