//! The thin step from a plan to the library's own objects, and status codes as errors.

use std::ptr;

use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys as cu;

use super::error::Unavailable;
use super::plan::{Batch, Layout, MatmulPlan};

/// Turns a driver status into an error that names the call.
pub(super) fn driver(call: &'static str, status: cu::CUresult) -> Result<(), Unavailable> {
    if status == cu::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let status = format!("{status:?}");
    Err(Unavailable::Call { call, status })
}

/// Turns a library status into an error that names the call.
pub(super) fn library(call: &'static str, status: lt::cublasStatus_t) -> Result<(), Unavailable> {
    if status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    let status = format!("{status:?}");
    Err(Unavailable::Call { call, status })
}

/// Device addresses that one product reads and writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pointers {
    /// The right operand.
    pub(super) a: u64,
    /// The left operand.
    pub(super) b: u64,
    /// What is added; the result where nothing is.
    pub(super) c: u64,
    /// The result.
    pub(super) d: u64,
    /// f32; `None` stands for 1.
    pub(super) alpha: Option<u64>,
    /// f32 `[n]`.
    pub(super) bias: Option<u64>,
    /// Swizzled block scales of A and B.
    pub(super) scales: Option<[u64; 2]>,
}

/// A plan as the library holds it.
#[derive(Debug)]
pub(super) struct Descriptors {
    pub(super) matmul: lt::cublasLtMatmulDesc_t,
    pub(super) a: lt::cublasLtMatrixLayout_t,
    pub(super) b: lt::cublasLtMatrixLayout_t,
    pub(super) d: lt::cublasLtMatrixLayout_t,
}

impl Descriptors {
    /// Makes the library's objects for a plan. Needs no context, only the library.
    pub(super) fn new(plan: &MatmulPlan) -> Result<Self, Unavailable> {
        // Null until made, so that a failure on the way frees what there is.
        let mut made = Self {
            matmul: ptr::null_mut(),
            a: ptr::null_mut(),
            b: ptr::null_mut(),
            d: ptr::null_mut(),
        };
        // SAFETY: the library was loaded and its functions were found by the probe; it writes a
        // pointer to the address given.
        library("cublasLtMatmulDescCreate", unsafe {
            lt::cublasLtMatmulDescCreate(&raw mut made.matmul, plan.compute, plan.scale_type)
        })?;
        for (slot, layout) in [
            (&mut made.a, plan.a),
            (&mut made.b, plan.b),
            (&mut made.d, plan.d),
        ] {
            create_layout(slot, layout)?;
        }
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        made.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            &(plan.transa as i32),
        )?;
        made.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            &(plan.transb as i32),
        )?;
        made.set(
            Attribute::CUBLASLT_MATMUL_DESC_POINTER_MODE,
            &plan.pointer_mode,
        )?;
        made.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &plan.epilogue)?;
        if let Some(mode) = plan.scale_mode {
            made.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode)?;
            made.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode)?;
        }
        Ok(made)
    }

    /// Sets the addresses that belong to the descriptor instead of the call.
    pub(super) fn point(&self, pointers: &Pointers) -> Result<(), Unavailable> {
        use lt::cublasLtMatmulDescAttributes_t as Attribute;
        if let Some(bias) = &pointers.bias {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        if let Some([a, b]) = &pointers.scales {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, a)?;
            self.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, b)?;
        }
        Ok(())
    }

    fn set<T: Copy>(
        &self,
        attribute: lt::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), Unavailable> {
        // SAFETY: the descriptor is alive; the library reads `size_of::<T>()` bytes of the value
        // and refuses any other size than the attribute has.
        library("cublasLtMatmulDescSetAttribute", unsafe {
            lt::cublasLtMatmulDescSetAttribute(
                self.matmul,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        })
    }
}

fn create_layout(slot: &mut lt::cublasLtMatrixLayout_t, layout: Layout) -> Result<(), Unavailable> {
    let Layout {
        rows,
        cols,
        ld,
        dtype,
        batch,
    } = layout;
    // SAFETY: as above, the library writes a pointer to the address given.
    library("cublasLtMatrixLayoutCreate", unsafe {
        lt::cublasLtMatrixLayoutCreate(slot, dtype, rows, cols, ld)
    })?;
    if batch == Batch::ONE {
        return Ok(());
    }
    use lt::cublasLtMatrixLayoutAttribute_t as Attribute;
    set_layout(
        *slot,
        Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
        &batch.count,
    )?;
    set_layout(
        *slot,
        Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
        &batch.stride,
    )
}

fn set_layout<T: Copy>(
    layout: lt::cublasLtMatrixLayout_t,
    attribute: lt::cublasLtMatrixLayoutAttribute_t,
    value: &T,
) -> Result<(), Unavailable> {
    // SAFETY: the layout is alive; the library reads `size_of::<T>()` bytes of the value and
    // refuses any other size than the attribute has.
    library("cublasLtMatrixLayoutSetAttribute", unsafe {
        lt::cublasLtMatrixLayoutSetAttribute(
            layout,
            attribute,
            ptr::from_ref(value).cast(),
            size_of::<T>(),
        )
    })
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: each pointer is null or was made by the library and is freed once. What a failed
        // release answers is of no use to anyone.
        unsafe {
            if !self.matmul.is_null() {
                let _ = lt::cublasLtMatmulDescDestroy(self.matmul);
            }
            for layout in [self.a, self.b, self.d] {
                if !layout.is_null() {
                    let _ = lt::cublasLtMatrixLayoutDestroy(layout);
                }
            }
        }
    }
}

/// What the heuristic may choose from.
#[derive(Debug)]
pub(super) struct Preference(pub(super) lt::cublasLtMatmulPreference_t);

impl Preference {
    /// Limits the workspace, promises alignments of A, B, C and D, and keeps partial sums in f32:
    /// a split along `k` must not be added up in a 16-bit result.
    pub(super) fn new(workspace: usize, alignment: [u32; 4]) -> Result<Self, Unavailable> {
        let mut preference = Self(ptr::null_mut());
        // SAFETY: the library writes a pointer to the address given.
        library("cublasLtMatmulPreferenceCreate", unsafe {
            lt::cublasLtMatmulPreferenceCreate(&raw mut preference.0)
        })?;
        use lt::cublasLtMatmulPreferenceAttributes_t as Attribute;
        preference.set(
            Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            &(workspace as u64),
        )?;
        let scheme = lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
        preference.set(
            Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            &scheme,
        )?;
        for (attribute, alignment) in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ]
        .into_iter()
        .zip(alignment)
        {
            preference.set(attribute, &alignment)?;
        }
        Ok(preference)
    }

    fn set<T: Copy>(
        &self,
        attribute: lt::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), Unavailable> {
        // SAFETY: the preference is alive; the library checks the size of the value.
        library("cublasLtMatmulPreferenceSetAttribute", unsafe {
            lt::cublasLtMatmulPreferenceSetAttribute(
                self.0,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        })
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by the library, freed once.
            let _ = unsafe { lt::cublasLtMatmulPreferenceDestroy(self.0) };
        }
    }
}
