//! What comes out of each pass of an operation, known before it runs.

use burn_backend::{DType, Shape};

use super::mamba2_mixer;
use crate::op::{Like, Op, Pass};

/// What comes out of a pass over float inputs like these, which are taken to be valid: kernels
/// check them.
pub(crate) fn outputs(op: &Op, pass: Pass, inputs: &[Like]) -> Vec<Like> {
    match (op, pass) {
        (Op::SquaredRelu, Pass::Forward | Pass::Backward) => vec![inputs[0].clone()],
        (Op::RmsNorm { output, .. }, Pass::Forward) => {
            let (shape, _) = &inputs[0];
            let rows = shape.num_elements() / shape[shape.num_dims() - 1];
            vec![
                (shape.clone(), *output),
                (Shape::new([rows, 1]), DType::F32),
            ]
        }
        (Op::RmsNorm { .. }, Pass::Backward) => inputs[..2].to_vec(),
        (
            Op::Embedding {
                tokens,
                token_dtype,
                output,
            },
            Pass::Forward,
        ) => {
            let columns = inputs[0].0[1];
            vec![
                (Shape::new([*tokens, columns]), *output),
                (Shape::new([*tokens]), *token_dtype),
            ]
        }
        (Op::Embedding { .. }, Pass::Backward) => vec![inputs[0].clone()],
        (Op::CrossEntropy, Pass::Forward) => {
            vec![(Shape::new([1]), DType::F32), inputs[0].clone()]
        }
        (Op::CrossEntropy, Pass::Backward) => vec![inputs[0].clone()],
        (Op::CausalAttention(shape), Pass::Forward) => {
            let rows = inputs[0].0.num_elements() / shape.head_dim;
            vec![inputs[0].clone(), (Shape::new([rows]), DType::F32)]
        }
        (Op::CausalAttention(_), Pass::Backward) => inputs[..3].to_vec(),
        (Op::Mamba2Mixer(shape), Pass::Forward) => mamba2_mixer::outputs(*shape, inputs),
        (Op::Mamba2Mixer(_), Pass::Backward) => mamba2_mixer::parameters(inputs).cloned().collect(),
    }
}
