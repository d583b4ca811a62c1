//! How often tensor scales are renewed.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::RecipeError;
use super::spec::{Fp8Scaling, OperandSpec, Recipe, ScaleRule};

/// How often the amaxes behind the tensor scales of a recipe are taken (numerics §13).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRenewal {
    /// Of each operand when it is quantized.
    #[default]
    EveryUse,
    /// In the steps whose number, counted from 0, is a multiple of this; kept in between, where
    /// block scales alone follow the operand and what lies beyond them is cut off.
    EverySteps(NonZeroU32),
}

impl ScaleRenewal {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde calls"
    )]
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// True if amaxes are taken in a step.
    pub const fn renews(self, step: u64) -> bool {
        match self {
            Self::EveryUse => true,
            Self::EverySteps(steps) => step.is_multiple_of(steps.get() as u64),
        }
    }
}

impl OperandSpec {
    /// True if the operand has one scale for the tensor, whose amax can be that of another step.
    pub const fn has_renewable_scale(&self) -> bool {
        match self {
            Self::Nvfp4 { scale, .. } => {
                matches!(scale, ScaleRule::Tensor | ScaleRule::FourOverSix { .. })
            }
            Self::Fp8 { scaling } => matches!(scaling, Fp8Scaling::Tensor),
            Self::HighPrecision | Self::Mxfp4 { .. } | Self::Mxfp8 { .. } => false,
        }
    }
}

impl Recipe {
    /// Checks that scales which are to be renewed now and then can be kept in between.
    pub(super) fn check_scale_renewal(&self) -> Result<(), RecipeError> {
        if self.scale_renewal == ScaleRenewal::EveryUse {
            return Ok(());
        }
        let refused = |place: &str, reason| {
            Err(RecipeError::Unsupported {
                place: place.to_owned(),
                reason,
            })
        };
        let operands = [
            ("fprop.lhs", self.fprop.lhs),
            ("fprop.rhs", self.fprop.rhs),
            ("dgrad.lhs", self.dgrad.lhs),
            ("dgrad.rhs", self.dgrad.rhs),
            ("wgrad.lhs", self.wgrad.lhs),
            ("wgrad.rhs", self.wgrad.rhs),
        ];
        for (place, spec) in operands {
            if let OperandSpec::Nvfp4 {
                scale: ScaleRule::Eden | ScaleRule::Row,
                ..
            } = spec
            {
                let reason = "EDEN and row scales follow each tensor: they cannot be kept between \
                              steps";
                return refused(place, reason);
            }
        }
        if operands.iter().any(|(_, spec)| spec.has_renewable_scale()) {
            Ok(())
        } else {
            let reason = "no operand has a tensor scale that could be kept between steps";
            refused("scale_renewal", reason)
        }
    }
}
