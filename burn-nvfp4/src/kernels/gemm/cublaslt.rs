//! GEMMs by NVIDIA's cuBLASLt, in the order of CubeCL's own kernels.
//!
//! The library is looked for when the program runs; [`probe`] says what is there, without a panic
//! if nothing is. [`gemm`] multiplies bf16, f16 and f32 operands with f32 sums, [`gemm_fp4`] packed
//! NVFP4 operands on devices that have FP4 tensor cores. Both return as soon as the product is
//! enqueued, except for the first product of a kind, which times a few algorithms ([`chosen`]).
//!
//! 1. [`plan`]: which product is asked for, as plain data.
//! 2. `library`: the state on the device's own thread, and how a product is ordered there.
//! 3. `call`: the plan as the library's objects.
//!
//! What is enqueued later can fail later. Such a failure is kept and returned by the next call as
//! [`Unavailable::Lost`]; nothing panics on the device's thread.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use burn_backend::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::Runtime;
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::server::{Binding, ComputeServer, Handle};
use cubecl_common::device::Device;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_common::stream_id::StreamId;
use cudarc::cublaslt::sys::{cublasLtEpilogue_t, cublasLtPointerMode_t};

pub mod error;
pub mod plan;
mod call;
mod library;
mod probe;
mod trial;

use super::Problem;
use super::epilogue::{Scale, finish};
use crate::cpu::Contraction;
use crate::format::Format;
use crate::kernels::swizzle::swizzle_scales;
use crate::kernels::{DeviceScales, PackedTensor};
use call::Pointers;
use library::{Key, alignment};
use plan::{Beta, Ends, MatmulPlan, Stored};

pub use error::{Unavailable, Version};
pub use probe::Capabilities;
pub use trial::ChosenAlgorithm;

type Server = <CudaRuntime as Runtime>::Server;
type Tensor = CubeTensor<CudaRuntime>;
/// Products for which one algorithm is chosen: on which device, what.
type Kind = (usize, Key);
type Answer = Result<(), Unavailable>;

/// Answers of the first call of each kind, by device. A call that is not here waits for its answer.
static SETTLED: LazyLock<RwLock<HashMap<Kind, Answer>>> = LazyLock::new(RwLock::default);
static CHOSEN: Mutex<Vec<ChosenAlgorithm>> = Mutex::new(Vec::new());
/// The first failure since the last one was reported.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);
static LAUNCHES: AtomicU64 = AtomicU64::new(0);

/// Says whether cuBLASLt can be used on a device, and with what; finds out once per device.
///
/// # Errors
/// [`Unavailable`]: which part is missing or too old, and what would be right.
pub fn probe(device: &CudaDevice) -> Result<Capabilities, Unavailable> {
    static PROBED: RwLock<BTreeMap<usize, Result<Capabilities, Unavailable>>> =
        RwLock::new(BTreeMap::new());
    let known = PROBED.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = known.get(&device.index) {
        return known.clone();
    }
    drop(known);
    // Without the lock: the device's thread may be waiting for it with a product of its own.
    let found = examine(device);
    let mut known = PROBED.write().unwrap_or_else(PoisonError::into_inner);
    known.entry(device.index).or_insert(found).clone()
}

/// Number of products enqueued by this process, trials apart.
pub fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

/// The algorithms in use, in the order of their first calls.
pub fn chosen() -> Vec<ChosenAlgorithm> {
    lock(&CHOSEN).clone()
}

/// Takes the first failure of a product whose result had already been handed out, if there is one.
///
/// [`gemm`] and [`gemm_fp4`] do this too. For the end of a run: call it after a synchronisation.
///
/// # Errors
/// [`Unavailable::Lost`].
pub fn take_failure() -> Result<(), Unavailable> {
    match lock(&FAILURE).take() {
        None => Ok(()),
        Some(message) => Err(Unavailable::Lost { message }),
    }
}

/// Multiplies by cuBLASLt: `alpha * A B^T + C + bias`, accumulated in f32.
///
/// An f32 result takes `alpha`, `C` and the bias in the epilogue of the GEMM. A 16-bit result with
/// a bias is computed in f32 and finished by a second kernel: the library would take a 16-bit bias
/// only. Rows of operands may be further apart than they are long.
///
/// # Errors
/// [`Unavailable`]: the library is missing, the tensors do not fit their roles, the library has no
/// algorithm, or, as [`Unavailable::Lost`], an earlier product was not enqueued. Nothing has been
/// enqueued then.
pub fn gemm(problem: Problem<CudaRuntime>) -> Result<Tensor, Unavailable> {
    probe(&problem.lhs.device)?;
    take_failure()?;
    check(&problem)?;
    let [m, n, k] = problem.dims();
    let (bias, after) = match &problem.bias {
        Some(bias) if takes_bias(&problem, bias) => (problem.bias.clone(), None),
        other => (None, other.clone()),
    };
    let ends = Ends {
        out: if after.is_some() {
            DType::F32
        } else {
            problem.out
        },
        pointer_mode: pointer_mode(problem.alpha.as_ref()),
        epilogue: match bias {
            None => cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
            Some(_) => cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
        },
        beta: match problem.accumulate {
            None => Beta::Zero,
            Some(_) => Beta::One,
        },
    };
    let plan = MatmulPlan::dense(
        [m, n, k],
        problem.lhs.dtype,
        stored(&problem.lhs, problem.lhs_along),
        stored(&problem.rhs, problem.rhs_along),
        ends,
    )?;
    let new = || {
        empty_device_contiguous_dtype(
            problem.lhs.client.clone(),
            problem.lhs.device.clone(),
            Shape::new([m, n]),
            ends.out,
        )
    };
    let (c, d) = match problem.accumulate {
        None => (None, new()),
        Some(sums) if sums.handle.can_mut() => (None, sums),
        Some(sums) => (Some(sums), new()),
    };
    let buffers = Buffers {
        a: problem.rhs.handle,
        b: problem.lhs.handle,
        c: c.map_or_else(|| d.handle.clone(), |c| c.handle),
        d: d.handle.clone(),
        alpha: problem.alpha.map(|alpha| alpha.handle),
        bias: bias.map(|bias| bias.handle),
        scales: None,
    };
    submit(&d.device, plan, buffers)?;
    Ok(match after {
        None => d,
        bias => finish(d, Scale::None, bias, problem.out),
    })
}

/// Multiplies two NVFP4 operands on FP4 tensor cores: `alpha * A B^T + bias`, where values are
/// code x block scale, accumulated in f32.
///
/// `alpha` (f32 `[1]`) carries the product of the tensor scales; with row scales, leave it out, ask
/// for f32 and [`finish`]. The bias (f32 `[n]`) is added by a second kernel, since the library
/// would take a 16-bit one only. The block scales are swizzled by a kernel per operand.
///
/// # Errors
/// As [`gemm`], and [`Unavailable::NoFp4`], [`Unavailable::NoFp4Library`],
/// [`Unavailable::NotNvfp4`], [`Unavailable::Fp4Contraction`], [`Unavailable::Fp4Alignment`]: the
/// padded `k` has to be a multiple of 32, and `n` of 8 for 16-bit and of 4 for f32 results.
pub fn gemm_fp4(
    lhs: &PackedTensor<CudaRuntime>,
    rhs: &PackedTensor<CudaRuntime>,
    alpha: Option<Tensor>,
    bias: Option<Tensor>,
    out: DType,
) -> Result<Tensor, Unavailable> {
    let device = &lhs.codes.device;
    probe(device)?.fp4()?;
    take_failure()?;
    let (m, n, k) = (lhs.rows, rhs.rows, lhs.padded_k);
    if k != rhs.padded_k {
        return Err(Unavailable::Fp4Contraction {
            lhs: k,
            rhs: rhs.padded_k,
        });
    }
    for (role, operand) in [("left operand", lhs), ("right operand", rhs)] {
        let shape = [operand.rows, k / 8];
        matrix(role, device, &operand.codes, DType::U32, shape)?;
    }
    if let Some(alpha) = &alpha {
        vector("alpha", device, alpha, 1)?;
    }
    if let Some(bias) = &bias {
        vector("bias", device, bias, n)?;
    }
    let sums = match bias {
        None => out,
        Some(_) => DType::F32,
    };
    let plan = MatmulPlan::fp4([m, n, k], sums, pointer_mode(alpha.as_ref()))?;
    let not_nvfp4 = || Unavailable::NotNvfp4 {
        lhs: format!("{:?}", lhs.format),
        rhs: format!("{:?}", rhs.format),
    };
    let swizzled = |operand: &PackedTensor<CudaRuntime>| match (operand.format, &operand.scales) {
        (Format::Nvfp4 { .. }, DeviceScales::Bytes(_)) => {
            swizzle_scales(operand).ok_or_else(not_nvfp4)
        }
        (
            Format::Nvfp4 { .. } | Format::Mxfp4 | Format::Mxfp8 | Format::Fp8 { .. },
            DeviceScales::None | DeviceScales::Bytes(_) | DeviceScales::F32(_),
        ) => Err(not_nvfp4()),
    };
    let scales = [swizzled(rhs)?.handle, swizzled(lhs)?.handle];
    let d = empty_device_contiguous_dtype(
        lhs.codes.client.clone(),
        device.clone(),
        Shape::new([m, n]),
        sums,
    );
    let buffers = Buffers {
        a: rhs.codes.handle.clone(),
        b: lhs.codes.handle.clone(),
        c: d.handle.clone(),
        d: d.handle.clone(),
        alpha: alpha.map(|alpha| alpha.handle),
        bias: None,
        scales: Some(scales),
    };
    submit(device, plan, buffers)?;
    Ok(match bias {
        None => d,
        bias => finish(d, Scale::None, bias, out),
    })
}

/// Buffers of one product, in the roles of [`Pointers`].
struct Buffers<T> {
    a: T,
    b: T,
    c: T,
    d: T,
    alpha: Option<T>,
    bias: Option<T>,
    scales: Option<[T; 2]>,
}

impl<T> Buffers<T> {
    fn try_map<U, E>(self, mut f: impl FnMut(T) -> Result<U, E>) -> Result<Buffers<U>, E> {
        Ok(Buffers {
            a: f(self.a)?,
            b: f(self.b)?,
            c: f(self.c)?,
            d: f(self.d)?,
            alpha: self.alpha.map(&mut f).transpose()?,
            bias: self.bias.map(&mut f).transpose()?,
            scales: match self.scales {
                None => None,
                Some([a, b]) => Some([f(a)?, f(b)?]),
            },
        })
    }
}

/// Sends a product to the device's thread. The first of a kind waits for the answer.
fn submit(
    device: &CudaDevice,
    plan: MatmulPlan,
    buffers: Buffers<Handle>,
) -> Result<(), Unavailable> {
    // CubeCL aligns allocations to 512 bytes, so that the offset is what counts.
    let alignment = [&buffers.a, &buffers.b, &buffers.c, &buffers.d]
        .map(|buffer: &Handle| alignment(buffer.offset_start.unwrap_or(0)));
    let key = Key { plan, alignment };
    let kind = (device.index, key.clone());
    let settled = {
        let settled = SETTLED.read().unwrap_or_else(PoisonError::into_inner);
        settled.get(&kind).cloned()
    };
    let (stream, index) = (StreamId::current(), device.index);
    let bindings = buffers.try_map(|buffer| Ok::<_, Unavailable>(buffer.binding()))?;
    let run = move |server: &mut Server| {
        caught(|| {
            let chosen = enqueue(server, &key.plan, bindings, stream)?;
            if let Some(chosen) = chosen {
                lock(&CHOSEN).push(ChosenAlgorithm {
                    device: index,
                    ..chosen
                });
            }
            Ok(())
        })
    };
    let server = DeviceHandle::<Server>::new(device.to_id());
    match settled {
        Some(Err(error)) => return Err(error),
        Some(Ok(())) => server.submit(move |server| {
            if let Err(error) = run(server) {
                lock(&FAILURE).get_or_insert_with(|| error.to_string());
            }
        }),
        None => {
            let answer = server
                .submit_blocking(run)
                .unwrap_or_else(|_| Err(no_answer()));
            // What may be otherwise next time is not kept.
            if matches!(answer, Ok(()) | Err(Unavailable::NoAlgorithm { .. })) {
                let mut settled = SETTLED.write().unwrap_or_else(PoisonError::into_inner);
                settled.insert(kind, answer.clone());
            }
            answer?;
        }
    }
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// On the device's thread: from buffers to addresses, and on to the library.
fn enqueue(
    server: &mut Server,
    plan: &MatmulPlan,
    bindings: Buffers<Binding>,
    stream: StreamId,
) -> Result<Option<ChosenAlgorithm>, Unavailable> {
    // Asking for a resource makes the context current and the caller's stream wait for the stream
    // in which the buffer was written. The resources keep the buffers until all is enqueued.
    let resources = bindings.try_map(|binding| {
        server
            .get_resource(binding, stream)
            .map_err(|error| Unavailable::Call {
                call: "get_resource",
                status: format!("{error}"),
            })
    })?;
    let pointers = Pointers {
        a: resources.a.resource().ptr,
        b: resources.b.resource().ptr,
        c: resources.c.resource().ptr,
        d: resources.d.resource().ptr,
        alpha: resources.alpha.as_ref().map(|alpha| alpha.resource().ptr),
        bias: resources.bias.as_ref().map(|bias| bias.resource().ptr),
        scales: resources
            .scales
            .as_ref()
            .map(|scales| scales.each_ref().map(|scales| scales.resource().ptr)),
    };
    library::enqueue(plan, &pointers)
}

fn examine(device: &CudaDevice) -> Result<Capabilities, Unavailable> {
    let capabilities = probe::installed(device.index)?;
    // Starts CubeCL's server if it was not there; it makes its context current on its thread.
    DeviceHandle::<Server>::new(device.to_id())
        .submit_blocking(|_server| caught(library::open))
        .unwrap_or_else(|_| Err(no_answer()))?;
    Ok(capabilities)
}

/// A panic on the device's thread would end it, and with it the process's use of the device.
fn caught<T>(f: impl FnOnce() -> Result<T, Unavailable>) -> Result<T, Unavailable> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Unavailable::Call {
            call: "the device's thread",
            status: message.unwrap_or("panicked").into(),
        })
    })
}

fn no_answer() -> Unavailable {
    Unavailable::Call {
        call: "the device's thread",
        status: "gave no answer".into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn pointer_mode(alpha: Option<&Tensor>) -> cublasLtPointerMode_t {
    match alpha {
        None => cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_HOST,
        Some(_) => cublasLtPointerMode_t::CUBLASLT_POINTER_MODE_DEVICE,
    }
}

/// The library takes an f32 bias with an f32 result. Some of its kernels read it in 16 bytes.
fn takes_bias(problem: &Problem<CudaRuntime>, bias: &Tensor) -> bool {
    let offset = bias.handle.offset_start.unwrap_or(0);
    problem.out == DType::F32 && offset.is_multiple_of(16)
}

fn stored(operand: &Tensor, along: Contraction) -> Stored {
    Stored {
        along,
        row_stride: operand.meta.strides()[0],
    }
}

/// Compares every tensor of a problem with its role, down to the bytes of its buffer: the library
/// reads what the plan says.
fn check(problem: &Problem<CudaRuntime>) -> Result<(), Unavailable> {
    let Problem { lhs, rhs, out, .. } = problem;
    let device = &lhs.device;
    if lhs.dtype != rhs.dtype {
        return Err(Unavailable::Types {
            lhs: lhs.dtype,
            rhs: rhs.dtype,
            out: *out,
        });
    }
    for (role, operand) in [("left operand", lhs), ("right operand", rhs)] {
        // Its own shape: only rank, layout and extent are asked here.
        let shape = operand.meta.shape();
        let shape = [
            shape.first().copied().unwrap_or(0),
            shape.get(1).copied().unwrap_or(0),
        ];
        matrix(role, device, operand, lhs.dtype, shape)?;
    }
    let [m, n, _] = problem.dims();
    if let Some(alpha) = &problem.alpha {
        vector("alpha", device, alpha, 1)?;
    }
    if let Some(bias) = &problem.bias {
        vector("bias", device, bias, n)?;
    }
    if let Some(sums) = &problem.accumulate {
        matrix("accumulated tensor", device, sums, DType::F32, [m, n])?;
        if !sums.is_contiguous() || *out != DType::F32 {
            return Err(misfit(
                "accumulated tensor",
                format!("a dense f32 [{m}, {n}] for an f32 result"),
                sums,
            ));
        }
    }
    Ok(())
}

/// A matrix whose rows are contiguous, at a distance of their length or more.
fn matrix(
    role: &'static str,
    device: &CudaDevice,
    tensor: &Tensor,
    dtype: DType,
    [rows, cols]: [usize; 2],
) -> Result<(), Unavailable> {
    let fits = || {
        let [row_stride, stride] = tensor.meta.strides().as_ref().try_into().ok()?;
        let dense: [usize; 2] = [row_stride, stride];
        let contiguous = (cols == 1 || dense[1] == 1) && (rows == 1 || dense[0] >= cols);
        let elements = rows
            .saturating_sub(1)
            .checked_mul(dense[0])?
            .checked_add(cols)?;
        let bytes = elements.checked_mul(dtype.size())?;
        Some(contiguous && bytes as u64 <= tensor.handle.size_in_used())
    };
    let shape: &[usize] = tensor.meta.shape();
    if tensor.dtype == dtype
        && tensor.device == *device
        && shape == [rows, cols]
        && fits() == Some(true)
    {
        return Ok(());
    }
    let expected = format!("a row-major {dtype:?} [{rows}, {cols}] on {device:?}");
    Err(misfit(role, expected, tensor))
}

/// f32, dense.
fn vector(
    role: &'static str,
    device: &CudaDevice,
    tensor: &Tensor,
    len: usize,
) -> Result<(), Unavailable> {
    if tensor.dtype == DType::F32
        && tensor.device == *device
        && tensor.meta.num_elements() == len
        && tensor.is_contiguous()
        && len as u64 * 4 <= tensor.handle.size_in_used()
    {
        return Ok(());
    }
    let expected = format!("a dense f32 [{len}] on {device:?}");
    Err(misfit(role, expected, tensor))
}

fn misfit(role: &'static str, expected: String, tensor: &Tensor) -> Unavailable {
    let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
    Unavailable::Tensor {
        role,
        expected,
        found: format!(
            "{:?} {shape:?} with strides {strides:?} on {:?}",
            tensor.dtype, tensor.device
        ),
    }
}

#[cfg(test)]
mod tests;
