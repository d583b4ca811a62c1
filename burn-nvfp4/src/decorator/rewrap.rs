//! Conversions of the structs that carry the backend as a type parameter.
//!
//! `FloatTensor<Nvfp4<B>>` and `FloatTensor<B>` are one type, `MaxPool1dBackward<Nvfp4<B>>` and
//! `MaxPool1dBackward<B>` are not. Their fields are, so each conversion moves the fields over.

use burn_backend::TensorPrimitive;
use burn_backend::ops::{
    DeformConv2dBackward, MaxPool1dBackward, MaxPool1dWithIndices, MaxPool2dBackward,
    MaxPool2dWithIndices, TransactionPrimitive,
};
use burn_backend::quantization::QuantizationParametersPrimitive;

use crate::decorator::backend::Nvfp4;
use crate::engine::Nvfp4Engine;

/// Rebuilds a struct for another backend with the same primitives.
pub(crate) trait Rewrap<T> {
    /// Moves the fields over.
    fn rewrap(self) -> T;
}

/// Results: from the inner backend's struct to the decorator's.
macro_rules! rewrap_results {
    ($($name:ident { $($field:ident),* })*) => {
        $(impl<B: Nvfp4Engine> Rewrap<$name<Nvfp4<B>>> for $name<B> {
            fn rewrap(self) -> $name<Nvfp4<B>> {
                $name { $($field: self.$field),* }
            }
        })*
    };
}

rewrap_results! {
    DeformConv2dBackward { x_grad, offset_grad, weight_grad, mask_grad, bias_grad }
    MaxPool1dBackward { x_grad }
    MaxPool1dWithIndices { output, indices }
    MaxPool2dBackward { x_grad }
    MaxPool2dWithIndices { output, indices }
}

impl<B: Nvfp4Engine> Rewrap<TensorPrimitive<Nvfp4<B>>> for TensorPrimitive<B> {
    fn rewrap(self) -> TensorPrimitive<Nvfp4<B>> {
        match self {
            TensorPrimitive::Float(tensor) => TensorPrimitive::Float(tensor),
            TensorPrimitive::QFloat(tensor) => TensorPrimitive::QFloat(tensor),
        }
    }
}

impl<B: Nvfp4Engine> Rewrap<TensorPrimitive<B>> for TensorPrimitive<Nvfp4<B>> {
    fn rewrap(self) -> TensorPrimitive<B> {
        match self {
            TensorPrimitive::Float(tensor) => TensorPrimitive::Float(tensor),
            TensorPrimitive::QFloat(tensor) => TensorPrimitive::QFloat(tensor),
        }
    }
}

impl<B: Nvfp4Engine> Rewrap<QuantizationParametersPrimitive<B>>
    for QuantizationParametersPrimitive<Nvfp4<B>>
{
    fn rewrap(self) -> QuantizationParametersPrimitive<B> {
        QuantizationParametersPrimitive {
            scales: self.scales,
        }
    }
}

impl<B: Nvfp4Engine> Rewrap<TransactionPrimitive<B>> for TransactionPrimitive<Nvfp4<B>> {
    fn rewrap(self) -> TransactionPrimitive<B> {
        // The private order of registration stays with the caller: Burn takes it out before it
        // calls `tr_execute`, and applies it to the result.
        TransactionPrimitive::new(
            self.read_floats,
            self.read_qfloats,
            self.read_ints,
            self.read_bools,
        )
    }
}
