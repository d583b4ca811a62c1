//! From the caller's thread to the device's: who waits, who counts, and where failures go.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, RwLock};

use cubecl::cuda::CudaDevice;
use cubecl::server::{Binding, ComputeServer, Handle};
use cubecl_common::device::Device;
use cubecl_common::device_handle::DeviceHandle;
use cubecl_common::stream_id::StreamId;

use super::Server;
use super::call::Pointers;
use super::error::Unavailable;
use super::library::{self, Key, alignment};
use super::plan::MatmulPlan;
use super::trial::ChosenAlgorithm;

/// Products for which one algorithm is chosen: on which device, what.
type Kind = (usize, Key);
type Answer = Result<(), Unavailable>;

/// Answers of the first call of each kind, by device. A call that is not here waits for its answer.
static SETTLED: LazyLock<RwLock<HashMap<Kind, Answer>>> = LazyLock::new(RwLock::default);
static CHOSEN: Mutex<Vec<ChosenAlgorithm>> = Mutex::new(Vec::new());
/// The first failure since the last one was reported.
static FAILURE: Mutex<Option<String>> = Mutex::new(None);
static LAUNCHES: AtomicU64 = AtomicU64::new(0);

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
/// [`gemm()`](super::gemm) and [`gemm_fp4`](super::gemm_fp4) do this too. For the end of a run:
/// call it after a synchronisation.
///
/// # Errors
/// [`Unavailable::Lost`].
pub fn take_failure() -> Result<(), Unavailable> {
    match lock(&FAILURE).take() {
        None => Ok(()),
        Some(message) => Err(Unavailable::Lost { message }),
    }
}

/// Buffers of one product, in the roles of [`Pointers`].
pub(super) struct Buffers<T> {
    pub(super) a: T,
    pub(super) b: T,
    pub(super) c: T,
    pub(super) d: T,
    pub(super) alpha: Option<T>,
    pub(super) bias: Option<T>,
    pub(super) scales: Option<[T; 2]>,
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
pub(super) fn submit(
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

/// A panic on the device's thread would end it, and with it the process's use of the device.
pub(super) fn caught<T>(f: impl FnOnce() -> Result<T, Unavailable>) -> Result<T, Unavailable> {
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

pub(super) fn no_answer() -> Unavailable {
    Unavailable::Call {
        call: "the device's thread",
        status: "gave no answer".into(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_reported_once_and_the_first_is_kept() {
        assert_eq!(take_failure(), Ok(()));
        for message in ["first", "second"] {
            lock(&FAILURE).get_or_insert_with(|| message.to_owned());
        }
        let message = "first".to_owned();
        assert_eq!(take_failure(), Err(Unavailable::Lost { message }));
        assert_eq!(take_failure(), Ok(()));
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let error = caught::<()>(|| panic!("no symbol")).unwrap_err();
        assert_eq!(error.to_string(), "the device's thread failed: no symbol");
    }
}
