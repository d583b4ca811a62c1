//! A GEMM on packed NVFP4 operands by the block-scaled MMA of compute capability 12.x.
//!
//! `mma.sync m16n8k64` of `kind::mxf4nvf4` multiplies E2M1 codes with one E4M3 scale to 16 of them
//! and accumulates in f32: on those devices (sm_120, sm_121) NVFP4 needs no emulation. CubeCL
//! reaches it through `execute_scaled`. Everything around the instruction can run without it:
//! [`Mma::Emulated`] is the same tiling, staging and register layout, with the instruction itself
//! carried out by the units of a lane group. That form is a proof of the indexing on any device,
//! not a fast GEMM.
//!
//! Not here: tensor memory and `tcgen05` of compute capability 10.x, which CubeCL does not reach,
//! and row scales on the second level, which `alpha` cannot carry.

mod layout;
mod tiling;
mod multiply;
mod staging;
mod kernel;
#[cfg(test)]
mod interpreter;

use burn_backend::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::ComputeClient;
use cubecl::ir::features::ScaledMmaConfig;
use cubecl::prelude::*;
use cubecl::{Runtime, e2m1x2, e4m3};

use super::super::{DeviceScales, PackedTensor};
use crate::format::{BlockShape, Format};
use kernel::{ExtentLaunch, Plan, ScalingLaunch, scaled_gemm};
use staging::{Copies, ScaleElements, Side};
pub use tiling::Tiling;

/// Who executes an MMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mma {
    /// The tensor core. Needs [`supported`].
    Native,
    /// The units of a lane group, in software.
    Emulated,
}

/// Why a GEMM cannot be launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScaledMmaError {
    /// The instruction multiplies one format only.
    #[error("the block-scaled MMA multiplies NVFP4 operands with E4M3 scales, got {format:?}")]
    Format {
        /// What was given.
        format: Format,
    },
    /// The operands are not factors of one product.
    #[error("the operands of a GEMM have contraction lengths {lhs} and {rhs}")]
    Contraction {
        /// `k` of the left operand.
        lhs: usize,
        /// `k` of the right operand.
        rhs: usize,
    },
    /// A tensor is not what the operand's shape asks for.
    #[error("{part}: {got:?} {dtype:?}, the operand asks for {expected}")]
    Part {
        /// Which tensor.
        part: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// Its dtype.
        dtype: DType,
        /// What would fit.
        expected: String,
    },
    /// D is written as a float type.
    #[error("a GEMM writes F32, BF16 or F16, not {out:?}")]
    Out {
        /// What was asked for.
        out: DType,
    },
    /// Indices are u32.
    #[error("a GEMM of {m}x{n}x{k} has more elements than a kernel of 32-bit indices can address")]
    TooLarge {
        /// Rows of D.
        m: usize,
        /// Columns of D.
        n: usize,
        /// Contraction length.
        k: usize,
    },
    /// The device cannot run the kernel.
    #[error("{reason}")]
    Device {
        /// What it lacks.
        reason: String,
    },
}

/// Whether the device has the instruction of [`Mma::Native`].
///
/// # Errors
/// One line that says what is missing.
pub fn supported<R: Runtime>(client: &ComputeClient<R>) -> Result<(), String> {
    let config = ScaledMmaConfig {
        a_type: e2m1x2::cube_type(),
        b_type: e2m1x2::cube_type(),
        cd_type: f32::cube_type(),
        scales_type: e4m3::cube_type(),
        m: layout::M,
        n: layout::N,
        k: 64,
        scales_factor: layout::BLOCKS,
    };
    if client.features().matmul.scaled_mma.contains(&config) {
        Ok(())
    } else {
        Err(format!(
            "{} device has no block-scaled FP4 MMA (m16n8k64, E4M3 scales): it needs CUDA with \
             compute capability 12.x",
            R::name(client)
        ))
    }
}

/// Multiplies `lhs [m, k]` with the transpose of `rhs [n, k]`, both packed as NVFP4, accumulates in
/// f32, multiplies by `alpha`, adds `bias` and rounds once: `[m, n]`.
///
/// The tensor scales of the operands are not looked at: `alpha` is their product, see
/// [`gemm_alpha`](crate::cpu::gemm_alpha).
///
/// # Shapes
/// `alpha`: `[1]`, f32. `bias`: `[n]`, f32. Absent, they are 1 and 0.
///
/// # Errors
/// [`ScaledMmaError`] if the operands are not NVFP4 or do not fit each other, or the device lacks
/// what `mma` or `out` asks for.
pub fn gemm<R: CubeRuntime>(
    lhs: &PackedTensor<R>,
    rhs: &PackedTensor<R>,
    alpha: Option<&CubeTensor<R>>,
    bias: Option<&CubeTensor<R>>,
    out: DType,
    mma: Mma,
) -> Result<CubeTensor<R>, ScaledMmaError> {
    let tiling = choose(&lhs.codes.client, [lhs.rows, rhs.rows], mma)?;
    ScaledGemm {
        lhs,
        rhs,
        alpha,
        bias,
        out,
    }
    .launch(mma, tiling)
}

/// The largest tiling that the device's shared memory holds and that does not leave most of a
/// matrix's tiles empty.
fn choose<R: Runtime>(
    client: &ComputeClient<R>,
    dims: [usize; 2],
    mma: Mma,
) -> Result<Tiling, ScaledMmaError> {
    let available = client.properties().hardware.max_shared_memory_size;
    let small = dims.iter().any(|&dim| dim <= 64);
    let order = if small {
        [Tiling::SMALL, Tiling::SHALLOW]
    } else {
        [Tiling::LARGE, Tiling::SHALLOW]
    };
    order
        .into_iter()
        .find(|tiling| tiling.shared_bytes(mma == Mma::Emulated) as usize <= available)
        .ok_or_else(|| ScaledMmaError::Device {
            reason: format!(
                "the device offers {available} bytes of shared memory to a cube, the block-scaled \
                 GEMM needs {}",
                Tiling::SHALLOW.shared_bytes(mma == Mma::Emulated)
            ),
        })
}

/// The arguments of [`gemm()`], for those who choose the tiling as well.
#[derive(Clone, Copy, Debug)]
pub struct ScaledGemm<'a, R: CubeRuntime> {
    /// `A [m, k]`.
    pub lhs: &'a PackedTensor<R>,
    /// `B [n, k]`.
    pub rhs: &'a PackedTensor<R>,
    /// f32 `[1]`.
    pub alpha: Option<&'a CubeTensor<R>>,
    /// f32 `[n]`.
    pub bias: Option<&'a CubeTensor<R>>,
    /// F32, BF16 or F16.
    pub out: DType,
}

impl<R: CubeRuntime> ScaledGemm<'_, R> {
    /// Runs the GEMM with a given tiling.
    ///
    /// # Errors
    /// As [`gemm()`].
    pub fn launch(&self, mma: Mma, tiling: Tiling) -> Result<CubeTensor<R>, ScaledMmaError> {
        self.validate(mma)?;
        let client = &self.lhs.codes.client;
        let (m, n) = (self.lhs.rows, self.rhs.rows);
        let out = empty_device_contiguous_dtype(
            client.clone(),
            self.lhs.codes.device.clone(),
            Shape::new([m, n]),
            self.out,
        );
        if m == 0 || n == 0 {
            return Ok(out);
        }
        let [tile_rows, tile_columns] = tiling.tile();
        let cubes = [
            self.count(m)?.div_ceil(tile_rows),
            self.count(n)?.div_ceil(tile_columns),
        ];
        let limit = client.properties().hardware.max_cube_count;
        if cubes[0] > limit.0 || cubes[1] > limit.1 {
            return Err(self.too_large());
        }
        let plan = self.plan(mma, tiling);
        let scale_type = match plan.lhs.scales {
            ScaleElements::Four => DType::U32,
            ScaleElements::One => self.scales(self.lhs)?.dtype,
        };
        let width = if n % 2 == 0 { 2 } else { 1 };
        let scaling = ScalingLaunch::new(
            self.alpha
                .map(|alpha| alpha.clone().into_array_arg())
                .into(),
            self.bias.map(|bias| bias.clone().into_array_arg()).into(),
        );
        // SAFETY: `validate` has checked that codes, scales, alpha and bias are contiguous and have
        // the lengths that `rows` and `row_blocks` ask for, and that indices fit u32. The kernel
        // reads rows below `rows` and blocks below `row_blocks` only, and writes `[m, n]`, the
        // shape that `out` was made with; two to a vector only if `n` is even.
        unsafe {
            crate::kernels::count_launch();
            scaled_gemm::launch_unchecked::<R>(
                client,
                CubeCount::Static(cubes[0], cubes[1], 1),
                CubeDim::new_1d(tiling.units()),
                width,
                self.lhs.codes.clone().into_array_arg(),
                self.scale_argument(self.lhs, plan.lhs)?,
                self.extent(self.lhs)?,
                self.rhs.codes.clone().into_array_arg(),
                self.scale_argument(self.rhs, plan.rhs)?,
                self.extent(self.rhs)?,
                scaling,
                out.clone().into_array_arg(),
                plan,
                scale_type.into(),
                self.out.into(),
            );
        }
        Ok(out)
    }

    fn plan(&self, mma: Mma, tiling: Tiling) -> Plan {
        let both = |multiple| {
            self.lhs.padded_k.is_multiple_of(multiple) && self.rhs.padded_k.is_multiple_of(multiple)
        };
        let copies = if !self.lhs.codes.client.features().copy_async {
            Copies::Registers
        } else if both(32) {
            Copies::Async { words: 4 }
        } else {
            Copies::Async { words: 2 }
        };
        // Four neighbouring bytes are one load where no row begins inside of a word.
        let bytes = |operand: &PackedTensor<R>| match &operand.scales {
            DeviceScales::Bytes(scales) => scales.dtype == DType::U8,
            DeviceScales::None | DeviceScales::F32(_) => false,
        };
        let scales = if both(64) && bytes(self.lhs) && bytes(self.rhs) {
            ScaleElements::Four
        } else {
            ScaleElements::One
        };
        let [lhs_rows, rhs_rows] = tiling.tile();
        let side = |operand: &PackedTensor<R>, tile_rows| Side {
            tile_rows,
            k_steps: tiling.k_steps(),
            units: tiling.units(),
            block: match operand.format {
                Format::Nvfp4 { block } => block,
                // `validate` has refused them.
                Format::Mxfp4 | Format::Mxfp8 | Format::Fp8 { .. } => BlockShape::Row16,
            },
            scales,
        };
        Plan {
            tiling,
            mma,
            copies,
            lhs: side(self.lhs, lhs_rows),
            rhs: side(self.rhs, rhs_rows),
        }
    }

    fn scale_argument(
        &self,
        operand: &PackedTensor<R>,
        side: Side,
    ) -> Result<ArrayArg<R>, ScaledMmaError> {
        let scales = self.scales(operand)?;
        let elements = match side.scales {
            ScaleElements::Four => scales.meta.num_elements() / 4,
            ScaleElements::One => scales.meta.num_elements(),
        };
        // SAFETY: `validate` has checked that the buffer is contiguous and has that many elements;
        // bytes are read as words only if each row is whole words, and buffers are aligned to more.
        Ok(unsafe { ArrayArg::from_raw_parts(scales.handle.clone(), elements) })
    }

    fn extent(&self, operand: &PackedTensor<R>) -> Result<ExtentLaunch<R>, ScaledMmaError> {
        Ok(ExtentLaunch::new(
            self.count(operand.rows)?,
            self.count(operand.padded_k / 16)?,
        ))
    }

    fn validate(&self, mma: Mma) -> Result<(), ScaledMmaError> {
        let device = |reason| ScaledMmaError::Device { reason };
        let client = &self.lhs.codes.client;
        match mma {
            Mma::Native => supported(client).map_err(device)?,
            Mma::Emulated => {}
        }
        if !matches!(self.out, DType::F32 | DType::BF16 | DType::F16) {
            return Err(ScaledMmaError::Out { out: self.out });
        }
        if !client
            .properties()
            .supports_type(StorageType::from(self.out))
        {
            return Err(device(format!("the device does not store {:?}", self.out)));
        }
        let (lhs, rhs) = (self.lhs, self.rhs);
        if lhs.k != rhs.k {
            return Err(ScaledMmaError::Contraction {
                lhs: lhs.k,
                rhs: rhs.k,
            });
        }
        for operand in [lhs, rhs] {
            self.validate_operand(operand)?;
        }
        // One kernel reads both, by one dtype.
        let dtype = self.scales(lhs)?.dtype;
        let scales = self.scales(rhs)?;
        check(
            "block scales of rhs",
            scales,
            &[dtype],
            scales.meta.num_elements(),
        )?;
        let f32s = |part, tensor: Option<&CubeTensor<R>>, len| match tensor {
            Some(tensor) => check(part, tensor, &[DType::F32], len),
            None => Ok(()),
        };
        f32s("alpha", self.alpha, 1)?;
        f32s("bias", self.bias, rhs.rows)?;
        self.count(
            lhs.rows
                .checked_mul(rhs.rows)
                .ok_or_else(|| self.too_large())?,
        )?;
        Ok(())
    }

    fn validate_operand(&self, operand: &PackedTensor<R>) -> Result<(), ScaledMmaError> {
        let format = operand.format;
        let layout = format
            .layout(operand.rows, operand.k)
            .ok_or_else(|| self.too_large())?;
        let words = layout.codes / 4;
        // The kernel counts in words of codes, and past the last row by one tile.
        self.count(words.checked_add(1 << 16).ok_or_else(|| self.too_large())?)?;
        if operand.padded_k != layout.padded_k {
            return Err(ScaledMmaError::Contraction {
                lhs: operand.padded_k,
                rhs: layout.padded_k,
            });
        }
        check("codes", &operand.codes, &[DType::U32], words)?;
        let scales = self.scales(operand)?;
        check(
            "block scales",
            scales,
            &[DType::U8, DType::U32],
            layout.scales,
        )
    }

    /// The block scales of an NVFP4 operand.
    fn scales<'b>(
        &self,
        operand: &'b PackedTensor<R>,
    ) -> Result<&'b CubeTensor<R>, ScaledMmaError> {
        let format = operand.format;
        match (&operand.scales, format) {
            (DeviceScales::Bytes(scales), Format::Nvfp4 { .. }) => Ok(scales),
            (DeviceScales::Bytes(_), Format::Mxfp4 | Format::Mxfp8 | Format::Fp8 { .. })
            | (DeviceScales::None | DeviceScales::F32(_), _) => {
                Err(ScaledMmaError::Format { format })
            }
        }
    }

    fn count(&self, elements: usize) -> Result<u32, ScaledMmaError> {
        u32::try_from(elements).map_err(|_| self.too_large())
    }

    fn too_large(&self) -> ScaledMmaError {
        ScaledMmaError::TooLarge {
            m: self.lhs.rows,
            n: self.rhs.rows,
            k: self.lhs.k,
        }
    }
}

fn check<R: CubeRuntime>(
    part: &'static str,
    tensor: &CubeTensor<R>,
    dtypes: &[DType],
    len: usize,
) -> Result<(), ScaledMmaError> {
    let fits = dtypes.contains(&tensor.dtype)
        && tensor.meta.num_elements() == len
        && tensor.is_contiguous();
    if fits {
        return Ok(());
    }
    Err(ScaledMmaError::Part {
        part,
        got: tensor.meta.shape.to_vec(),
        dtype: tensor.dtype,
        expected: format!("{len} contiguous elements of {dtypes:?}"),
    })
}
