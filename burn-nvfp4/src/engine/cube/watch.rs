//! NaN and infinity in operands on a device, found without reading each of them back.
//!
//! Every watched operand has a number; the kernel that takes its amax writes the number into one
//! word of the device if it sees a non-finite element and the word is free. Whoever asks
//! ([`runtime::take_non_finite`]) reads that word.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use burn_backend::{Backend, DType, DeviceId, DeviceOps, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

use crate::engine::OperandRequest;
use crate::kernels::quantize::Watch;
use crate::runtime::{self, NonFinite};

/// Nothing found yet.
const NOTHING: u32 = u32::MAX;

/// What a device is watched with.
struct Watched<R: CubeRuntime> {
    found: CubeTensor<R>,
    ids: HashMap<(String, &'static str), u32>,
    names: Vec<NonFinite>,
}

type Table = HashMap<(TypeId, DeviceId), Box<dyn Any + Send>>;

static WATCHED: LazyLock<Mutex<Table>> = LazyLock::new(Mutex::default);

fn table() -> MutexGuard<'static, Table> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn empty_word<R: CubeRuntime>(device: &R::Device) -> CubeTensor<R> {
    let client = R::client(device);
    let handle = client.create_from_slice(&NOTHING.to_le_bytes());
    CubeTensor::new_contiguous(client, device.clone(), Shape::new([1]), handle, DType::U32)
}

/// Where the kernel is to note that the operand of `request` is not finite.
pub(super) fn watch<B, R>(x: &CubeTensor<R>, request: &OperandRequest<'_>) -> Watch<R>
where
    R: CubeRuntime,
    B: Backend<Device = R::Device>,
{
    let key = (TypeId::of::<R>(), x.device.id());
    let mut table = table();
    let watched = table.entry(key).or_insert_with(|| {
        let device = x.device.clone();
        runtime::set_probe::<B>(&x.device, Box::new(move || take::<R>(&device)));
        Box::new(Watched::<R> {
            found: empty_word::<R>(&x.device),
            ids: HashMap::new(),
            names: vec![],
        })
    });
    let watched = watched
        .downcast_mut::<Watched<R>>()
        .expect("the key holds the runtime");
    let Watched { found, ids, names } = watched;
    let (layer, operand) = (request.layer.to_owned(), request.operand);
    let id = *ids.entry((layer, operand)).or_insert_with(|| {
        names.push(NonFinite {
            layer: request.layer.to_owned(),
            operand,
        });
        u32::try_from(names.len() - 1).expect("a model has fewer than 2^32 layers")
    });
    Watch {
        found: found.clone(),
        id,
    }
}

/// What was found since the last call. Waits for the device.
fn take<R: CubeRuntime>(device: &R::Device) -> Option<NonFinite> {
    let mut table = table();
    let watched = table.get_mut(&(TypeId::of::<R>(), device.id()))?;
    let watched = watched.downcast_mut::<Watched<R>>()?;
    let client = R::client(device);
    let word = client.read_one(watched.found.handle.clone()).ok()?;
    let id = u32::from_le_bytes(word.get(..4)?.try_into().ok()?);
    if id == NOTHING {
        return None;
    }
    watched.found = empty_word::<R>(device);
    watched.names.get(usize::try_from(id).ok()?).cloned()
}
