//! `Nvfp4<B>`: what the backend below does; no operation of this crate is a linear.

use burn_backend::tensor::{Device, FloatTensor, IntTensor};
use burn_nvfp4::{Nvfp4, Nvfp4Engine};

use super::HybridEngine;
use crate::op::{Like, Op, Pass};

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

    fn apply(
        op: Op,
        inputs: Vec<FloatTensor<Self>>,
        ints: Vec<IntTensor<Self>>,
    ) -> FloatTensor<Self> {
        B::apply(op, inputs, ints)
    }
}
