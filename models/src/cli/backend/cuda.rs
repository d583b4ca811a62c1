//! What a CUDA device needs, looked for before Burn does: it answers with a panic on another
//! thread.

use std::ffi::c_int;
use std::path::{Path, PathBuf};

use cudarc::driver::{result, sys};

const NO_GPU: &str =
    "--backend cuda: the NVIDIA driver sees no GPU (CUDA_VISIBLE_DEVICES may hide it)";

/// Checks driver, device and run-time compiler.
///
/// # Errors
/// One line: what is missing, and what would be right.
pub(super) fn check(index: usize) -> Result<(), String> {
    // SAFETY: looks whether the library can be loaded and calls nothing in it.
    if !unsafe { sys::is_culib_present() } {
        return Err("--backend cuda: there is no NVIDIA driver (libcuda cannot be loaded)".into());
    }
    result::init().map_err(|error| {
        if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE {
            NO_GPU.to_owned()
        } else {
            format!("--backend cuda: the NVIDIA driver does not start: {error}")
        }
    })?;
    let count = result::device::get_count()
        .map_err(|error| format!("--backend cuda: cannot count the GPUs: {error}"))?;
    let count = usize::try_from(count).unwrap_or(0);
    if count == 0 {
        return Err(NO_GPU.to_owned());
    }
    if index >= count {
        let known = match count {
            1 => "there is only device 0".to_owned(),
            _ => format!("there are devices 0 to {}", count - 1),
        };
        return Err(format!("--device {index}: {known}"));
    }
    // SAFETY: as above.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(
            "--backend cuda: CUDA's run-time compiler is missing (libnvrtc cannot be loaded); \
             install the CUDA toolkit, or the packages nvidia-cuda-nvrtc and nvidia-cuda-runtime"
                .to_owned(),
        );
    }
    let toolkit = toolkit();
    if !toolkit.join("include").is_dir() {
        return Err(format!(
            "--backend cuda: CUDA's headers are missing: there is no {}; CUDA_PATH names the \
             folder of the toolkit",
            toolkit.join("include").display()
        ));
    }
    memory(index)
}

/// Checks that devices, which were checked one by one, can train together.
///
/// # Errors
/// One line: what is missing, and what would be right.
#[cfg(feature = "distributed")]
pub(super) fn check_together(indices: &[usize]) -> Result<(), String> {
    // SAFETY: looks whether the library can be loaded and calls nothing in it.
    if !unsafe { cudarc::nccl::sys::is_culib_present() } {
        return Err(
            "--devices: NCCL is missing (libnccl.so cannot be loaded); install libnccl-dev, or \
             link that name to libnccl.so.2 of a package that has only this, in a folder of \
             LD_LIBRARY_PATH"
                .to_owned(),
        );
    }
    let first = architecture(indices[0])?;
    for &index in &indices[1..] {
        let other = architecture(index)?;
        if other != first {
            return Err(format!(
                "--devices: device {} is {first} and device {index} is {other}; only equal GPUs \
                 train together",
                indices[0]
            ));
        }
    }
    Ok(())
}

/// The architecture of a device that was checked, as in `sm_90`.
///
/// # Errors
/// One line, if the driver does not tell.
pub(super) fn architecture(index: usize) -> Result<String, String> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = open(index)?;
    let number = |attribute| {
        // SAFETY: the device was opened.
        unsafe { result::device::get_attribute(device, attribute) }
            .map_err(|error| format!("--device {index}: its architecture is unknown: {error}"))
    };
    Ok(format!("sm_{}{}", number(MAJOR)?, number(MINOR)?))
}

/// What the driver calls a device.
pub(super) fn name(index: usize) -> Option<String> {
    result::device::get_name(open(index).ok()?).ok()
}

fn open(index: usize) -> Result<sys::CUdevice, String> {
    let number = c_int::try_from(index).map_err(|_| format!("--device {index}: out of range"))?;
    result::device::get(number)
        .map_err(|error| format!("--device {index}: cannot be opened: {error}"))
}

/// Where CubeCL looks for the headers.
fn toolkit() -> PathBuf {
    std::env::var_os("CUDA_PATH").map_or_else(|| Path::new("/usr/local/cuda").into(), PathBuf::from)
}

/// A context needs some memory; a full device is better told here.
fn memory(index: usize) -> Result<(), String> {
    let device = open(index)?;
    // SAFETY: the device was just opened, and the context is released below.
    let context = unsafe { result::primary_ctx::retain(device) }
        .map_err(|error| format!("--device {index}: no context can be made on it: {error}"))?;
    let _ = context;
    // SAFETY: retained above; Burn retains it again.
    unsafe { result::primary_ctx::release(device) }
        .map_err(|error| format!("--device {index}: its context cannot be released: {error}"))
}

/// Bytes that are taken of a device's memory, if the driver tells.
pub(super) fn memory_in_use(index: usize) -> Option<u64> {
    let device = open(index).ok()?;
    // SAFETY: the device was just opened, and the context, which Burn holds too, is released below.
    let context = unsafe { result::primary_ctx::retain(device) }.ok()?;
    // SAFETY: it is retained. Burn's threads set their own context before they call the driver.
    let is_current = unsafe { result::ctx::set_current(context) }.is_ok();
    let memory = if is_current {
        result::mem_get_info().ok()
    } else {
        None
    };
    // SAFETY: retained above.
    let _ = unsafe { result::primary_ctx::release(device) };
    let (free, total) = memory?;
    u64::try_from(total.checked_sub(free)?).ok()
}
