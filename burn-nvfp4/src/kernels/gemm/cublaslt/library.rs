//! The library on the thread that owns a device: one handle, one stream, one workspace, and the
//! algorithms that were chosen.
//!
//! CubeCL runs everything for a device on one thread and keeps its streams to itself. A product is
//! put between its kernels on the device, without the host waiting:
//!
//! 1. an event captures all that was issued in the context so far, and this stream waits for it;
//! 2. the product is enqueued in this stream;
//! 3. another event captures the product, and all that is issued in the context from now on waits
//!    for it, so that memory which CubeCL reuses is safe too.
//!
//! The first product of a kind also times algorithms, between 1 and 2, on its own operands, and
//! waits for the clock: see `trial`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr;

use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys as cu;

use super::call::{Descriptors, Pointers, driver, library};
use super::error::Unavailable;
use super::plan::{Beta, MatmulPlan};
use super::trial::ChosenAlgorithm;

/// What NVIDIA recommends for Hopper and Blackwell is 32 MiB; twice that was measured with.
pub(super) const WORKSPACE: usize = 64 << 20;
/// Alphas and betas of the device pointer mode, which takes both from device memory.
/// A static, for they are also pointed at on the host.
static CONSTANTS: [f32; 2] = [0.0, 1.0];

pub(super) type ElapsedTime =
    unsafe extern "C" fn(*mut f32, cu::CUevent, cu::CUevent) -> cu::CUresult;

/// What an algorithm is chosen for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) plan: MatmulPlan,
    /// Largest power of two, up to 256, that divides the addresses of A, B, C and D.
    pub(super) alignment: [u32; 4],
}

/// The largest power of two up to 256 that divides an address or an offset.
pub(super) fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// A product that can be enqueued.
pub(super) struct Prepared {
    pub(super) descriptors: Descriptors,
    pub(super) algorithm: lt::cublasLtMatmulAlgo_t,
}

pub(super) struct Library {
    pub(super) handle: lt::cublasLtHandle_t,
    pub(super) stream: cu::CUstream,
    before: cu::CUevent,
    after: cu::CUevent,
    pub(super) start: cu::CUevent,
    pub(super) stop: cu::CUevent,
    workspace: cu::CUdeviceptr,
    pub(super) elapsed: ElapsedTime,
    /// What `cublasLtGetVersion` answers.
    pub(super) version: usize,
    prepared: HashMap<Key, Prepared>,
}

thread_local! {
    // One device per server thread; a process that ends takes the handles with it.
    static LIBRARY: RefCell<Option<Library>> = const { RefCell::new(None) };
}

/// Makes handle, stream, events and workspace for the device whose context is current.
pub(super) fn open() -> Result<(), Unavailable> {
    LIBRARY.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = Some(Library::open()?);
        }
        Ok(())
    })
}

/// Enqueues a product behind all that was issued in the current context, and before all that will
/// be. Says what was chosen if the product is the first of its kind.
pub(super) fn enqueue(
    plan: &MatmulPlan,
    pointers: &Pointers,
) -> Result<Option<ChosenAlgorithm>, Unavailable> {
    LIBRARY.with_borrow_mut(|slot| match slot {
        Some(library) => library.enqueue(plan, pointers),
        // The probe opens it before anything is submitted.
        None => Err(Unavailable::Call {
            call: "cublasLtMatmul",
            status: "the library was not opened on this thread".into(),
        }),
    })
}

impl Library {
    fn open() -> Result<Self, Unavailable> {
        current_context()?;
        let mut made = Self {
            handle: ptr::null_mut(),
            stream: ptr::null_mut(),
            before: ptr::null_mut(),
            after: ptr::null_mut(),
            start: ptr::null_mut(),
            stop: ptr::null_mut(),
            workspace: 0,
            // SAFETY: the probe found the function; its type is the driver's, which has been the
            // same since CUDA 2. cudarc binds a newer name of it, that 12.5 does not have.
            elapsed: *unsafe { cu::culib().get::<ElapsedTime>(b"cuEventElapsedTime") }.map_err(
                |_| Unavailable::NoSymbol {
                    library: "libcuda",
                    symbol: "cuEventElapsedTime",
                },
            )?,
            // SAFETY: the probe found the function, which takes nothing.
            version: unsafe { lt::cublasLtGetVersion() },
            prepared: HashMap::new(),
        };
        let bytes = WORKSPACE + size_of_val(&CONSTANTS);
        made.workspace = allocate("the cuBLASLt workspace", bytes)?;
        let quiet = cu::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let timed = cu::CUevent_flags::CU_EVENT_DEFAULT as u32;
        // SAFETY: the functions were found by the probe and a context is current; each writes one
        // handle to the address given, and the copy reads the constants and writes behind the
        // workspace.
        unsafe {
            driver(
                "cuMemcpyHtoD",
                cu::cuMemcpyHtoD_v2(
                    made.constant(0),
                    CONSTANTS.as_ptr().cast(),
                    size_of_val(&CONSTANTS),
                ),
            )?;
            driver(
                "cuStreamCreate",
                cu::cuStreamCreate(
                    &raw mut made.stream,
                    cu::CUstream_flags::CU_STREAM_NON_BLOCKING as u32,
                ),
            )?;
            for (event, flags) in [
                (&mut made.before, quiet),
                (&mut made.after, quiet),
                (&mut made.start, timed),
                (&mut made.stop, timed),
            ] {
                driver("cuEventCreate", cu::cuEventCreate(event, flags))?;
            }
            library("cublasLtCreate", lt::cublasLtCreate(&raw mut made.handle))?;
        }
        Ok(made)
    }

    /// Address of a constant on the device.
    const fn constant(&self, index: u64) -> u64 {
        self.workspace + WORKSPACE as u64 + index * size_of::<f32>() as u64
    }

    fn enqueue(
        &mut self,
        plan: &MatmulPlan,
        pointers: &Pointers,
    ) -> Result<Option<ChosenAlgorithm>, Unavailable> {
        let context = current_context()?;
        // SAFETY: context, events and stream are alive; nothing is read or written through them.
        unsafe {
            driver(
                "cuCtxRecordEvent",
                cu::cuCtxRecordEvent(context, self.before),
            )?;
            driver(
                "cuStreamWaitEvent",
                cu::cuStreamWaitEvent(self.stream, self.before, 0),
            )?;
        }
        let result = self.choose_and_launch(plan, pointers);
        // Also after a failure: a trial may have written before it failed.
        // SAFETY: as above.
        unsafe {
            driver("cuEventRecord", cu::cuEventRecord(self.after, self.stream))?;
            driver("cuCtxWaitEvent", cu::cuCtxWaitEvent(context, self.after))?;
        }
        result
    }

    fn choose_and_launch(
        &mut self,
        plan: &MatmulPlan,
        pointers: &Pointers,
    ) -> Result<Option<ChosenAlgorithm>, Unavailable> {
        let key = Key {
            plan: plan.clone(),
            alignment: [pointers.a, pointers.b, pointers.c, pointers.d].map(alignment),
        };
        if let Some(prepared) = self.prepared.get(&key) {
            prepared.descriptors.point(pointers)?;
            self.launch(plan, prepared, pointers)?;
            return Ok(None);
        }
        let (prepared, chosen) = self.choose(&key, pointers)?;
        self.launch(plan, &prepared, pointers)?;
        self.prepared.insert(key, prepared);
        Ok(Some(chosen))
    }

    /// Calls the library. The addresses in the descriptor have to be set.
    pub(super) fn launch(
        &self,
        plan: &MatmulPlan,
        prepared: &Prepared,
        pointers: &Pointers,
    ) -> Result<(), Unavailable> {
        let Prepared {
            descriptors,
            algorithm,
        } = prepared;
        let beta = match plan.beta {
            Beta::Zero => 0,
            Beta::One => 1,
        };
        let host = [&CONSTANTS[1], &CONSTANTS[beta]].map(|value| ptr::from_ref(value).cast());
        let [alpha, beta] = match pointers.alpha {
            None => host,
            Some(alpha) => [alpha, self.constant(beta as u64)].map(device_pointer),
        };
        // SAFETY: the descriptors were made from the plan whose sizes the caller compared with the
        // buffers behind `pointers`, which stay allocated until CubeCL's streams have waited for
        // this one. Alpha and beta lie where the pointer mode of the plan says; those on the host
        // are read before the call returns. The workspace is used in this stream only.
        library("cublasLtMatmul", unsafe {
            lt::cublasLtMatmul(
                self.handle,
                descriptors.matmul,
                alpha,
                device_pointer(pointers.a),
                descriptors.a,
                device_pointer(pointers.b),
                descriptors.b,
                beta,
                device_pointer(pointers.c),
                descriptors.d,
                device_pointer(pointers.d).cast_mut(),
                descriptors.d,
                algorithm,
                device_pointer(self.workspace).cast_mut(),
                WORKSPACE,
                self.stream.cast(),
            )
        })
    }
}

fn current_context() -> Result<cu::CUcontext, Unavailable> {
    let mut context = ptr::null_mut();
    // SAFETY: the function was found by the probe and writes one pointer.
    driver("cuCtxGetCurrent", unsafe {
        cu::cuCtxGetCurrent(&raw mut context)
    })?;
    if context.is_null() {
        return Err(Unavailable::Call {
            call: "cuCtxGetCurrent",
            status: "no context is current on the server's thread".into(),
        });
    }
    Ok(context)
}

pub(super) fn allocate(what: &'static str, bytes: usize) -> Result<cu::CUdeviceptr, Unavailable> {
    let mut address = 0;
    // SAFETY: the function was found by the probe and writes one address.
    let status = unsafe { cu::cuMemAlloc_v2(&raw mut address, bytes) };
    if status == cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return Err(Unavailable::OutOfMemory { what, bytes });
    }
    driver("cuMemAlloc", status)?;
    Ok(address)
}

/// An address in device memory as the library's functions take it; never read on the host.
const fn device_pointer(address: u64) -> *const std::ffi::c_void {
    address as *const std::ffi::c_void
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignments_are_powers_of_two_up_to_256() {
        for (address, expected) in [(0, 256), (512, 256), (768, 256), (16, 16), (4, 4), (1, 1)] {
            assert_eq!(alignment(address), expected, "{address}");
        }
    }
}
