//! `Nvfp4<B>`: what the backend below does; no operation of this crate is a linear.

use burn_backend::tensor::{Device, FloatTensor, IntTensor};
use burn_nvfp4::oscillation::quantized_weight;
use burn_nvfp4::recipe::OperandSpec;
use burn_nvfp4::{Nvfp4, Nvfp4Engine};

use super::HybridEngine;
use crate::op::{AdamW, Like, Op, Pass};

impl<B: HybridEngine + Nvfp4Engine> HybridEngine for Nvfp4<B> {
    fn has_kernel(op: &Op, inputs: &[Like], device: &Device<Self>) -> bool {
        B::has_kernel(op, inputs, device)
    }

    fn launch(
        op: &Op,
        pass: Pass,
        inputs: Vec<FloatTensor<Self>>,
        ints: Vec<IntTensor<Self>>,
    ) -> Vec<FloatTensor<Self>> {
        B::launch(op, pass, inputs, ints)
    }

    fn has_optimizer(device: &Device<Self>) -> bool {
        B::has_optimizer(device)
    }

    fn sum_of_squares(tensors: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        B::sum_of_squares(tensors)
    }

    fn adamw(
        states: Vec<[FloatTensor<Self>; 4]>,
        factor: Option<FloatTensor<Self>>,
        numbers: AdamW,
    ) -> Vec<[FloatTensor<Self>; 3]> {
        B::adamw(states, factor, numbers)
    }

    fn weight_values(weight: FloatTensor<Self>, spec: OperandSpec) -> FloatTensor<Self> {
        quantized_weight::<B>(weight, spec)
    }

    fn apply(
        op: Op,
        inputs: Vec<FloatTensor<Self>>,
        ints: Vec<IntTensor<Self>>,
    ) -> FloatTensor<Self> {
        B::apply(op, inputs, ints)
    }
}
