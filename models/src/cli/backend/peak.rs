//! What GPUs could do in dense bf16 products with f32 sums, by their makers' data sheets.

/// Names as the driver gives them, and TFLOP/s. Whole names: one word more is another chip, a
/// laptop's, or a slice of this one.
const DENSE_BF16: [(&str, f64); 20] = [
    ("NVIDIA B200", 2250.0),
    ("NVIDIA GH200 480GB", 989.0),
    ("NVIDIA H200", 989.0),
    ("NVIDIA H200 NVL", 835.0),
    ("NVIDIA H100 80GB HBM3", 989.0),
    ("NVIDIA H100 NVL", 835.0),
    ("NVIDIA H100 PCIe", 756.0),
    ("NVIDIA A100-SXM4-80GB", 312.0),
    ("NVIDIA A100-SXM4-40GB", 312.0),
    ("NVIDIA A100 80GB PCIe", 312.0),
    ("NVIDIA A100-PCIE-40GB", 312.0),
    ("NVIDIA A100-PCIE-80GB", 312.0),
    ("NVIDIA A10", 125.0),
    ("NVIDIA A40", 149.7),
    ("NVIDIA L4", 121.0),
    ("NVIDIA L40S", 362.0),
    ("NVIDIA GeForce RTX 5090", 209.5),
    ("NVIDIA GeForce RTX 4090", 165.2),
    ("NVIDIA GeForce RTX 3090 Ti", 80.0),
    ("NVIDIA GeForce RTX 3090", 71.0),
];

/// TFLOP/s of the GPU of this name; `None` if it is in no table of ours.
pub(super) fn dense_bf16_tflops(name: &str) -> Option<f64> {
    let found = DENSE_BF16.iter().find(|(known, _)| *known == name);
    found.map(|&(_, tflops)| tflops)
}
