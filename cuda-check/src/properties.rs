//! What an architecture can do, as CubeCL's CUDA runtime would ask of a device.
//!
//! The same tables as `CudaServer::init` of cubecl-cuda 0.10, keyed by the compute capability
//! alone. Limits are those of the CUDA C++ programming guide 13.0, "Technical Specifications per
//! Compute Capability".

use std::fmt;

use cubecl::ir::features::{AtomicUsage, Plane, Tma, TypeUsage};
use cubecl::ir::{
    BarrierLevel, DeviceProperties, ElemType, FloatKind, HardwareProperties,
    MemoryDeviceProperties, OpaqueType, SemanticType, StorageType, Type, VectorSize,
};
use cubecl_common::profile::TimingMethod;
use cubecl_cpp::DialectWmmaCompiler;
use cubecl_cpp::cuda::CudaDialect;
use cubecl_cpp::cuda::arch::CudaArchitecture;
use cubecl_cpp::cuda::mma::CudaWmmaCompiler;
use cubecl_cpp::register_supported_types;
use cubecl_cpp::shared::{
    CompilationOptions, CppSupportedFeatures, register_mma_features, register_scaled_mma_features,
    register_wmma_features,
};

/// The dialect of CubeCL's CUDA runtime.
pub type Dialect = CudaDialect<CudaWmmaCompiler>;

/// An architecture that kernels are assembled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Architecture {
    /// A100.
    #[value(name = "sm_80")]
    Sm80,
    /// H100, H200.
    #[value(name = "sm_90a")]
    Sm90a,
    /// B200.
    #[value(name = "sm_100a")]
    Sm100a,
    /// RTX 50, RTX PRO Blackwell.
    #[value(name = "sm_120a")]
    Sm120a,
}

impl Architecture {
    /// All of them, oldest first.
    pub const ALL: [Self; 4] = [Self::Sm80, Self::Sm90a, Self::Sm100a, Self::Sm120a];

    /// The compute capability times ten.
    pub fn capability(self) -> u16 {
        match self {
            Self::Sm80 => 80,
            Self::Sm90a => 90,
            Self::Sm100a => 100,
            Self::Sm120a => 120,
        }
    }

    /// The architecture of a compute capability times ten, if kernels are assembled for it.
    pub fn of_capability(capability: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|architecture| architecture.capability() == capability)
    }

    /// Bytes of shared memory that one cube may have.
    fn shared_memory(self) -> usize {
        let kib = match self {
            Self::Sm80 => 163,
            Self::Sm90a | Self::Sm100a => 227,
            Self::Sm120a => 99,
        };
        kib * 1024
    }

    /// Streaming multiprocessors of the usual card, and CubeCL's count of tensor cores in each.
    fn multiprocessors(self) -> (u32, Option<u32>) {
        match self {
            Self::Sm80 => (108, Some(4)),
            Self::Sm90a => (132, Some(4)),
            Self::Sm100a => (148, Some(4)),
            Self::Sm120a => (170, None),
        }
    }
}

impl fmt::Display for Architecture {
    /// As NVRTC spells it; CubeCL takes the `a` variant from 9.0 on.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.capability() >= 90 { "a" } else { "" };
        write!(out, "sm_{}{suffix}", self.capability())
    }
}

/// The properties that a device of `architecture` would report.
pub fn properties(architecture: Architecture) -> DeviceProperties {
    let capability = architecture.capability();
    let (multiprocessors, tensor_cores) = architecture.multiprocessors();
    let hardware = HardwareProperties {
        load_width: 128,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size: architecture.shared_memory(),
        max_cube_count: (i32::MAX as u32, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(multiprocessors),
        num_tensor_cores: tensor_cores,
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        max_vector_size: VectorSize::MAX,
    };
    // A quarter of 80 GiB, as CubeCL takes of the memory that is there. Nothing is allocated.
    let memory = MemoryDeviceProperties {
        max_page_size: 20 << 30,
        alignment: 512,
    };
    let mut properties =
        DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
    register_supported_types(&mut properties);
    register_types(capability, &mut properties);
    register_atomics(capability, &mut properties);
    register_instructions(capability, &mut properties);
    let cuda = CudaArchitecture {
        version: u32::from(capability),
    };
    let wmma = CudaWmmaCompiler::supported_wmma_combinations(&cuda);
    register_wmma_features(wmma, &mut properties);
    let mma = CudaWmmaCompiler::supported_mma_combinations(&cuda);
    register_mma_features(mma, &mut properties);
    let scaled = CudaWmmaCompiler::supported_scaled_mma_combinations(&cuda);
    register_scaled_mma_features(scaled, &mut properties);
    properties
}

/// Types that not every architecture has.
fn register_types(capability: u16, properties: &mut DeviceProperties) {
    let buffer = || TypeUsage::Conversion | TypeUsage::Buffer;
    let float = ElemType::Float;
    properties.register_type_usage(float(FloatKind::TF32), TypeUsage::Conversion);
    if capability >= 89 {
        properties.register_type_usage(float(FloatKind::E4M3), buffer());
        properties.register_type_usage(float(FloatKind::E5M2), buffer());
    }
    // FP4 and FP6 are promised within the major versions that have them, not for later ones.
    if (100..130).contains(&capability) {
        let e2m1 = float(FloatKind::E2M1);
        properties.register_type_usage(e2m1, TypeUsage::Conversion);
        properties.register_type_usage(StorageType::Packed(e2m1, 2), buffer());
        for kind in [FloatKind::E2M3, FloatKind::E3M2, FloatKind::UE8M0] {
            properties.register_type_usage(float(kind), buffer());
        }
    }
    for level in [BarrierLevel::Unit, BarrierLevel::Cube] {
        properties.register_type_usage(OpaqueType::Barrier(level), TypeUsage::Buffer);
    }
}

fn register_atomics(capability: u16, properties: &mut DeviceProperties) {
    let atomic = |kind| Type::new(StorageType::Atomic(ElemType::Float(kind)));
    let mut register = |type_| {
        properties.register_atomic_type_usage(type_, AtomicUsage::Add | AtomicUsage::LoadStore)
    };
    register(atomic(FloatKind::F64));
    register(atomic(FloatKind::F16));
    register(atomic(FloatKind::F16).with_vector_size(2));
    if capability >= 90 {
        register(atomic(FloatKind::F32).with_vector_size(2));
        register(atomic(FloatKind::F32).with_vector_size(4));
    }
}

fn register_instructions(capability: u16, properties: &mut DeviceProperties) {
    properties.register_semantic_type(SemanticType::Pipeline);
    let features = &mut properties.features;
    features.copy_async = true;
    features.memory_reinterpret = true;
    features.alignment = true;
    for plane in [Plane::Ops, Plane::Sync, Plane::NonUniformControlFlow] {
        features.plane.insert(plane);
    }
    for kind in [FloatKind::F16, FloatKind::BF16] {
        let storage = StorageType::from(ElemType::Float(kind));
        features.matmul.ldmatrix.insert(storage);
        if capability >= 90 {
            features.matmul.stmatrix.insert(storage);
        }
    }
    if capability >= 90 {
        features.tma.insert(Tma::Base);
        features.cube_cluster = true;
    }
    if capability >= 100 {
        features.tma.insert(Tma::Im2colWide);
        features.tma.insert(Tma::SwizzleAtomicity);
    }
    if capability >= 90 {
        properties.register_semantic_type(SemanticType::TensorMap);
    }
}

/// What the compiler to CUDA C++ may use.
pub fn compilation_options(architecture: Architecture) -> CompilationOptions {
    let hopper = architecture.capability() >= 90;
    CompilationOptions {
        warp_size: 32,
        supports_features: CppSupportedFeatures {
            grid_constants: true,
            clusters: hopper,
            fast_math: true,
            fast_tanh: true,
            elect_sync: hopper,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The architectures on which `has` holds.
    fn where_(has: impl Fn(&DeviceProperties) -> bool) -> Vec<Architecture> {
        let all = Architecture::ALL.into_iter();
        all.filter(|&architecture| has(&properties(architecture)))
            .collect()
    }

    #[test]
    fn block_scaled_mma_is_on_12x_alone() {
        let found = where_(|p| !p.features.matmul.scaled_mma.is_empty());
        assert_eq!(found, [Architecture::Sm120a]);
    }

    #[test]
    fn fp8_comes_with_8_9_and_fp4_with_10_0() {
        let stores =
            |storage: StorageType| where_(|p| p.type_usage(storage).contains(TypeUsage::Buffer));
        let e4m3 = ElemType::Float(FloatKind::E4M3);
        assert_eq!(stores(e4m3.into()), Architecture::ALL[1..]);
        let e2m1x2 = StorageType::Packed(ElemType::Float(FloatKind::E2M1), 2);
        assert_eq!(stores(e2m1x2), Architecture::ALL[2..]);
        let bf16 = ElemType::Float(FloatKind::BF16);
        assert_eq!(stores(bf16.into()), Architecture::ALL);
    }

    #[test]
    fn tensor_memory_copies_come_with_9_0() {
        assert_eq!(
            where_(|p| p.features.tma.contains(Tma::Base)),
            Architecture::ALL[1..]
        );
    }

    #[test]
    fn architectures_are_spelled_as_nvrtc_wants_them() {
        let names = Architecture::ALL.map(|architecture| architecture.to_string());
        assert_eq!(names, ["sm_80", "sm_90a", "sm_100a", "sm_120a"]);
        for architecture in Architecture::ALL {
            let capability = architecture.capability();
            assert_eq!(Architecture::of_capability(capability), Some(architecture));
        }
        assert_eq!(Architecture::of_capability(75), None);
    }
}
