//! The blocks of a hybrid model, one file each, generic over any backend.
//!
//! Weights come from a [`source::ParamSource`] by name; shapes are in `config/params.rs` alone.
//! Only [`linear`] goes through Burn's `linear` operation, so only it is ever quantized: attention
//! products, convolution and scan are ordinary tensor operations.
//!
//! Dtypes: activations travel in the dtype of a [`pass::Pass`]. Norms, the discretisation step,
//! the scan with its state and softmax compute in [`wide`], whatever arrives; every change of dtype
//! is an explicit cast, because Burn promotes nothing and some backends reinterpret silently.

use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor};

pub mod pass;
pub mod source;
pub mod linear;
pub mod activation;
pub mod norm;
pub mod conv;
pub mod ssd;
pub mod mamba2;
pub mod kv_cache;
pub mod attention;
pub mod mlp;
pub mod loss;

/// The dtype for what must not lose precision: f32, or f64 where the model itself is in f64.
pub fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}

/// `[batch, seq, channels]` without gaps, of a slice of something wider.
///
/// Flex walks a slice of three axes element by element in every operation on it, so what several
/// operations read is copied once.
fn dense<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [batch, seq, channels] = x.dims();
    let rows = x.reshape([batch * seq, channels]);
    rows.reshape([batch, seq, channels])
}
