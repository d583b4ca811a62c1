//! A CubeCL runtime without a device: a launch is compiled to CUDA C++ and recorded.
//!
//! The device's index is the compute capability, so each architecture is a device. Buffers have no
//! memory: writes are dropped and reads are zeros. Whatever CubeCL's CUDA runtime would refuse
//! before NVRTC sees it (cube dimensions, units, shared memory) is refused here.

use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use burn_backend::DeviceOps;
use burn_cubecl::CubeBackend;
use cubecl::ir::{
    ContiguousElements, DeviceProperties, MatrixLayout, MmaProperties, TargetProperties,
};
use cubecl::server::{
    Binding, ComputeServer, CopyDescriptor, IoError, KernelArguments, ProfileError, ProfilingToken,
    ServerCommunication, ServerError, ServerUtilities,
};
use cubecl::zspace::striding::has_pitched_row_major_strides;
use cubecl::zspace::{Shape, Strides};
use cubecl::{CubeCount, CubeTask, ExecutionMode, MemoryAllocationMode, MemoryUsage, Runtime};
use cubecl_common::backtrace::BackTrace;
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{Device, DeviceId, DeviceService, ServerUtilitiesHandle};
use cubecl_common::future::DynFut;
use cubecl_common::profile::ProfileDuration;
use cubecl_common::reader::read_sync;
use cubecl_common::stream_id::StreamId;
use cubecl_cpp::cuda::mma::contiguous_elements_cuda;
use cubecl_cpp::shared::{CompilationOptions, CppCompiler};
use cubecl_runtime::allocator::PitchedMemoryLayoutPolicy;
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::ManagedMemoryHandle;
use cubecl_runtime::storage::{ComputeStorage, ManagedResource, StorageHandle, StorageId};
use cubecl_runtime::timestamp_profiler::TimestampProfiler;
use cubecl_runtime::validation::{validate_cube_dim, validate_units};

use crate::properties::{Architecture, Dialect, compilation_options, properties};
use crate::record::{self, Kernel, Refusal};

/// Burn on the recording runtime.
pub type Recorder = CubeBackend<RecordingRuntime, f32, i32, u8>;

/// CubeCL's compiler to CUDA C++.
type CudaCompiler = CppCompiler<Dialect>;

/// A device that is nothing but its architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordingDevice(pub Architecture);

impl Default for RecordingDevice {
    fn default() -> Self {
        Self(Architecture::Sm90a)
    }
}

impl Device for RecordingDevice {
    fn from_id(id: DeviceId) -> Self {
        Self(architecture_of(id))
    }

    fn to_id(&self) -> DeviceId {
        DeviceId {
            type_id: 0,
            index_id: self.0.capability(),
        }
    }
}

impl DeviceOps for RecordingDevice {}

fn architecture_of(id: DeviceId) -> Architecture {
    Architecture::of_capability(id.index_id).expect("ids are made by `RecordingDevice::to_id`")
}

/// The runtime; see the module.
#[derive(Clone, Copy, Debug)]
pub struct RecordingRuntime;

impl Runtime for RecordingRuntime {
    type Compiler = CudaCompiler;
    type Server = RecordingServer;
    type Device = RecordingDevice;

    fn client(device: &RecordingDevice) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_client: &ComputeClient<Self>) -> &'static str {
        // What is decided by the name of the runtime is to be decided as on CUDA.
        "cuda"
    }

    fn require_array_lengths() -> bool {
        true
    }

    fn max_cube_count() -> (u32, u32, u32) {
        (i32::MAX as u32, 65535, 65535)
    }

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        has_pitched_row_major_strides(shape, strides)
    }

    fn target_properties() -> TargetProperties {
        TargetProperties {
            mma: MmaProperties {
                register_size_bits: 32,
                const_plane_size: 32,
                register_layout_a: MatrixLayout::RowMajor,
                register_layout_b: MatrixLayout::ColMajor,
                register_layout_acc: MatrixLayout::RowMajor,
                register_duplication_a: 1,
                register_duplication_b: 1,
                register_duplication_acc: 1,
                contiguous_elements: ContiguousElements::new(contiguous_elements_cuda),
            },
        }
    }

    fn enumerate_devices(_type_id: u16, _info: &()) -> Vec<DeviceId> {
        let ids = Architecture::ALL.map(|architecture| RecordingDevice(architecture).to_id());
        ids.to_vec()
    }
}

/// The server of one architecture.
#[derive(Debug)]
pub struct RecordingServer {
    architecture: Architecture,
    options: CompilationOptions,
    utilities: Arc<ServerUtilities<Self>>,
    timestamps: TimestampProfiler,
    /// Kernels that were compiled. A step launches each many times, and compiling is most of its
    /// time.
    seen: HashSet<KernelId>,
}

impl RecordingServer {
    /// Compiles a kernel to CUDA C++, within the limits of the architecture.
    fn compile(
        &self,
        kernel: &dyn CubeTask<CudaCompiler>,
        mode: ExecutionMode,
    ) -> Result<Kernel, String> {
        let limits: &DeviceProperties = &self.utilities.properties;
        let id = kernel.id();
        validate_cube_dim(limits, &id).map_err(|error| error.to_string())?;
        validate_units(limits, &id).map_err(|error| error.to_string())?;
        let compile = || {
            kernel.compile(
                &mut CudaCompiler::default(),
                &self.options,
                mode,
                kernel.address_type(),
            )
        };
        // CubeCL's device thread goes on after a panic and nobody would hear of it.
        let compiled = catch_unwind(AssertUnwindSafe(compile))
            .map_err(|panic| panic_message(&*panic))?
            .map_err(|error| error.to_string())?;
        // CubeCL's CUDA runtime takes the argument list from it.
        let representation = compiled
            .repr
            .as_ref()
            .ok_or("the kernel has a source but no representation, which CUDA needs")?;
        let shared = representation.shared_memory_size();
        let most = limits.hardware.max_shared_memory_size;
        if shared > most {
            return Err(format!("{shared} bytes of shared memory, at most {most}"));
        }
        Ok(Kernel {
            name: format!("{} ({})", path(kernel.name()), compiled.entrypoint_name),
            source: compiled.source,
        })
    }
}

/// Runs launch code and waits until its launches are recorded. A panic in it is an error like any
/// other.
///
/// # Errors
/// That of `launch`, or its panic.
pub fn recorded(device: &RecordingDevice, launch: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(launch))
        .map_err(|panic| anyhow!("panicked: {}", panic_message(&*panic)))??;
    let client = RecordingRuntime::client(device);
    read_sync(client.sync()).map_err(|error| anyhow!("{error}"))
}

/// A type's path without its generics, which take lines.
fn path(type_name: &str) -> &str {
    type_name.split('<').next().unwrap_or_default()
}

/// What a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

impl DeviceService for RecordingServer {
    fn init(id: DeviceId) -> Self {
        let architecture = architecture_of(id);
        let properties = properties(architecture);
        let alignment = usize::try_from(properties.memory.alignment).expect("512 fits in a usize");
        let policy = PitchedMemoryLayoutPolicy::new(alignment);
        let logger = Arc::new(ServerLogger::default());
        Self {
            architecture,
            options: compilation_options(architecture),
            utilities: Arc::new(ServerUtilities::new(properties, logger, (), policy)),
            timestamps: TimestampProfiler::default(),
            seen: HashSet::new(),
        }
    }

    fn utilities(&self) -> ServerUtilitiesHandle {
        self.utilities.clone()
    }
}

/// Memory that is never there.
#[derive(Debug)]
pub struct NoStorage;

impl ComputeStorage for NoStorage {
    type Resource = ();

    fn alignment(&self) -> usize {
        1
    }

    fn get(&mut self, _: &StorageHandle) {}

    fn alloc(&mut self, _: u64) -> Result<StorageHandle, IoError> {
        Err(no_memory())
    }

    fn dealloc(&mut self, _: StorageId) {}

    fn flush(&mut self) {}
}

/// The answer to whoever asks for memory itself, not for its contents.
fn no_memory() -> IoError {
    IoError::UnsupportedIoOperation {
        backtrace: BackTrace::capture(),
    }
}

impl ServerCommunication for RecordingServer {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for RecordingServer {
    type Kernel = Box<dyn CubeTask<CudaCompiler>>;
    type Info = ();
    type MemoryLayoutPolicy = PitchedMemoryLayoutPolicy;
    type Storage = NoStorage;

    fn initialize_memory(&mut self, _: ManagedMemoryHandle, _: u64, _: StreamId) {}

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        self.utilities.clone()
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        let zeros = |descriptor: &CopyDescriptor| {
            let elements: usize = descriptor.shape.iter().product();
            Bytes::from_bytes_vec(vec![0; elements * descriptor.elem_size])
        };
        let bytes = descriptors.iter().map(zeros).collect();
        Box::pin(async move { Ok(bytes) })
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn get_resource(
        &mut self,
        _: Binding,
        _: StreamId,
    ) -> Result<ManagedResource<()>, ServerError> {
        Err(no_memory().into())
    }

    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        _: CubeCount,
        _: KernelArguments,
        mode: ExecutionMode,
        _: StreamId,
    ) {
        record::launched(self.architecture);
        if !self.seen.insert(kernel.id()) {
            return;
        }
        match self.compile(&*kernel, mode) {
            Ok(kernel) => record::compiled(self.architecture, kernel),
            Err(reason) => {
                let name = path(kernel.name()).to_owned();
                record::refused(self.architecture, Refusal { name, reason });
            }
        }
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_usage(&mut self, _: StreamId) -> Result<MemoryUsage, ServerError> {
        Ok(MemoryUsage {
            number_allocs: 0,
            bytes_in_use: 0,
            bytes_padding: 0,
            bytes_reserved: 0,
        })
    }

    fn memory_cleanup(&mut self, _: StreamId) {}

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Ok(self.timestamps.start())
    }

    fn end_profile(
        &mut self,
        _: StreamId,
        token: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        self.timestamps.stop(token)
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}
