//! One block: `h + mixer(norm(h))`.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_hybrid_ops::HybridEngine;

use crate::config::{HybridConfig, MixerKind};
use crate::nn::attention::Attention;
use crate::nn::mamba2::Mamba2;
use crate::nn::mlp::Mlp;
use crate::nn::norm::RmsNorm;
use crate::nn::pass::Pass;
use crate::nn::source::ParamSource;

use super::cache::Memory;

/// A pre-norm residual block.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Before the mixer.
    pub norm: RmsNorm<B>,
    /// What the block does.
    pub mixer: Mixer<B>,
}

/// The mixer of a block.
#[derive(Module, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a model has tens of blocks, and Burn derives no boxes"
)]
pub enum Mixer<B: Backend> {
    /// Letter `M`.
    Mamba(Mamba2<B>),
    /// Letter `*`.
    Attention(Attention<B>),
    /// Letter `-`.
    Mlp(Mlp<B>),
}

impl<B: Backend> Block<B> {
    /// Takes the parameters below `layers.{index}.`.
    pub fn new(
        source: &mut ParamSource<'_, B>,
        index: usize,
        kind: MixerKind,
        config: &HybridConfig,
    ) -> Self {
        let name = format!("layers.{index}.mixer");
        Self {
            norm: RmsNorm::new(source, &format!("layers.{index}.norm"), config.norm_eps),
            mixer: match kind {
                MixerKind::Mamba => Mixer::Mamba(Mamba2::new(source, &name, config)),
                MixerKind::Attention => Mixer::Attention(Attention::new(source, &name, config)),
                MixerKind::Mlp => Mixer::Mlp(Mlp::new(source, &name)),
            },
        }
    }
}

impl<B: HybridEngine> Block<B> {
    /// `[batch, seq, d_model]` to the same, in the dtype of the residual stream `h`.
    ///
    /// With a memory the tokens follow those that it holds, and it holds these too afterwards.
    ///
    /// # Panics
    /// If the memory is that of another kind of mixer.
    pub fn forward(
        &self,
        h: Tensor<B, 3>,
        memory: Option<&mut Memory<B>>,
        pass: &mut Pass<'_, B>,
    ) -> Tensor<B, 3> {
        let x = self.norm.forward(h.clone(), pass.dtype());
        let y = pass.within("mixer", |pass| match (&self.mixer, memory) {
            (Mixer::Mamba(mamba), None) => mamba.forward(x, pass),
            (Mixer::Mamba(mamba), Some(Memory::Mamba(state))) => {
                let (y, next) = mamba.extend(x, state.take(), pass);
                *state = Some(next);
                y
            }
            (Mixer::Attention(attention), None) => attention.forward(x, None, pass),
            (Mixer::Attention(attention), Some(Memory::Attention(cache))) => {
                attention.forward(x, Some(cache), pass)
            }
            (Mixer::Mlp(mlp), None | Some(Memory::Mlp)) => mlp.forward(x),
            (Mixer::Mamba(_), Some(Memory::Attention(_) | Memory::Mlp))
            | (Mixer::Attention(_), Some(Memory::Mamba(_) | Memory::Mlp))
            | (Mixer::Mlp(_), Some(Memory::Mamba(_) | Memory::Attention(_))) => {
                panic!("the cache was made for another model")
            }
        });
        pass.observe("mixer", || y.clone());
        let dtype = h.dtype();
        h + y.cast(dtype)
    }
}
