//! A scan whose lengths and tensors have been looked at.

use burn_backend::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::SsdInputs;
use super::plan::{ExtentLaunch, Plan, TILE_CHANNELS, WIDTH};
use super::shape::{SsdShape, saved_shapes};

/// A scan that has been looked at: lengths, and what follows from them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) shape: SsdShape,
    pub(super) plan: Plan,
    /// Chunks of a sequence.
    pub(super) sequence_chunks: usize,
}

impl Call {
    pub(super) fn of(shape: SsdShape) -> Self {
        let plan = Plan::new(&shape);
        Self {
            shape,
            plan,
            sequence_chunks: shape.seq.div_ceil(plan.tokens),
        }
    }

    /// Chunks of all sequences.
    pub(super) const fn chunks(&self) -> usize {
        self.shape.batch * self.sequence_chunks
    }

    pub(super) fn extent<R: CubeRuntime>(&self) -> ExtentLaunch<R> {
        ExtentLaunch::new(self.shape.seq, self.sequence_chunks)
    }

    /// A cube for each tile of tokens and channels of each chunk.
    pub(super) fn tiles(&self) -> CubeCount {
        let along = self.plan.tokens / self.plan.tile_tokens();
        let across = self.plan.channels().div_ceil(TILE_CHANNELS);
        CubeCount::new_2d(word(along * across), word(self.chunks()))
    }

    /// The inputs, dense and where vectors can be loaded.
    pub(super) fn take<R: CubeRuntime>(&self, inputs: SsdInputs<R>) -> SsdInputs<R> {
        if let Err(reason) = self.shape.check() {
            panic!("{reason}");
        }
        let SsdShape {
            batch, seq, heads, ..
        } = self.shape;
        let activation = inputs.xbc.dtype;
        assert!(
            matches!(activation, DType::BF16 | DType::F16 | DType::F32),
            "ssd: activations are bf16, f16 or f32, not {activation:?}"
        );
        let columns = self.shape.columns();
        SsdInputs {
            xbc: dense("xbc", inputs.xbc, activation, &[batch, seq, columns]),
            dt: dense("dt", inputs.dt, DType::F32, &[batch, seq, heads]),
            a_log: dense("a_log", inputs.a_log, DType::F32, &[heads]),
            d_skip: dense("d_skip", inputs.d_skip, DType::F32, &[heads]),
        }
    }

    /// What forward saved.
    pub(super) fn take_saved<R: CubeRuntime>(
        &self,
        saved: Vec<CubeTensor<R>>,
        activation: DType,
    ) -> [CubeTensor<R>; 3] {
        let likes = saved_shapes(&self.shape, activation);
        let count = saved.len();
        let saved: [CubeTensor<R>; 3] = saved
            .try_into()
            .unwrap_or_else(|_| panic!("ssd: forward saves 3 tensors, not {count}"));
        let mut likes = likes.into_iter();
        saved.map(|tensor| {
            let (shape, dtype) = likes.next().expect("a shape for each saved tensor");
            dense("a saved tensor", tensor, dtype, &shape)
        })
    }
}

/// The tensor, dense and at an address that a vector may have.
pub(super) fn dense<R: CubeRuntime>(
    name: &str,
    tensor: CubeTensor<R>,
    dtype: DType,
    shape: &[usize],
) -> CubeTensor<R> {
    let found: &[usize] = tensor.meta.shape();
    assert!(
        found == shape && tensor.dtype == dtype,
        "ssd: {name} is {:?} {found:?}, expected {dtype:?} {shape:?}",
        tensor.dtype
    );
    let tensor = into_contiguous(tensor);
    let vector = (WIDTH * dtype.size()) as u64;
    let offset = tensor.handle.offset_start.unwrap_or(0);
    if offset.is_multiple_of(vector) {
        tensor
    } else {
        tensor.copy()
    }
}

/// A length as kernels and grids take it.
pub(super) fn word(len: usize) -> u32 {
    u32::try_from(len).expect("`SsdShape::check` compared all lengths with 32 bits")
}
