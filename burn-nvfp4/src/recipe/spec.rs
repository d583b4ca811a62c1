//! What a recipe is: for each of the three GEMMs of a linear layer, how each operand is rounded.
//!
//! Plain data, no behaviour beyond checks: `cpu` and `kernels` read an [`OperandSpec`], `policy`
//! chooses a [`Recipe`]. Combinations that no arithmetic is defined for are found by
//! [`Recipe::validate`], which every entry point calls.

use serde::{Deserialize, Deserializer, Serialize};

use super::RecipeError;
use super::renewal::ScaleRenewal;

pub use crate::format::{BlockShape, Fp8Scaling};

/// How the three GEMMs of a linear layer run.
///
/// In Burn's layout `W` is `[d_input, d_output]`: `Y = X W`, `dX = dY Wᵀ`, `dW = Xᵀ dY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// What `W` of dgrad and `X` of wgrad are made from.
    #[serde(default, skip_serializing_if = "BackwardReads::is_default")]
    pub backward_reads: BackwardReads,
    /// Whether the mean of `X` and of `dY` over tokens is quantized with the rest.
    #[serde(default, skip_serializing_if = "TokenMean::is_default")]
    pub token_mean: TokenMean,
    /// How often the amaxes behind tensor scales are taken.
    #[serde(default, skip_serializing_if = "ScaleRenewal::is_default")]
    pub scale_renewal: ScaleRenewal,
    /// `Y = X W`: `lhs` is the activation, `rhs` the weight; both are blocked along `d_input`.
    #[serde(deserialize_with = "super::named::fprop")]
    pub fprop: GemmSpec,
    /// `dX = dY Wᵀ`: `lhs` is the output gradient, `rhs` the weight; blocked along `d_output`.
    #[serde(deserialize_with = "super::named::dgrad")]
    pub dgrad: GemmSpec,
    /// `dW = Xᵀ dY`: `lhs` is the activation, `rhs` the output gradient; blocked along tokens.
    #[serde(deserialize_with = "super::named::wgrad")]
    pub wgrad: GemmSpec,
}

/// What backward's forward operands, `W` of dgrad and `X` of wgrad, are made from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackwardReads {
    /// The tensors, as they came.
    #[default]
    Tensors,
    /// The values that fprop multiplied: the operands of fprop, quantized once more. Backward is
    /// then that of the forward that ran.
    FpropOperands,
}

impl BackwardReads {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde calls"
    )]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether the mean of `X` and of `dY` over tokens is quantized with the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenMean {
    /// It is.
    #[default]
    Quantized,
    /// It is subtracted first and multiplied on its own, in high precision (Averis,
    /// arXiv:2603.10444; numerics §12).
    Apart,
}

impl TokenMean {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "the signature that serde calls"
    )]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The two operands of one GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GemmSpec {
    /// Left operand.
    pub lhs: OperandSpec,
    /// Right operand.
    pub rhs: OperandSpec,
}

/// How one operand is represented inside a GEMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum OperandSpec {
    /// The tensor as it is, in its own dtype.
    #[serde(deserialize_with = "no_fields")]
    HighPrecision,
    /// E2M1 codes, one E4M3 scale per 16 elements, one f32 scale per tensor or row (numerics §2).
    Nvfp4 {
        /// Which elements share a block scale.
        block: BlockShape,
        /// How the scales are chosen.
        scale: ScaleRule,
        /// How elements are rounded to E2M1.
        rounding: Rounding,
        /// What is applied along the contraction axis before quantizing.
        transform: Transform,
    },
    /// E2M1 codes, one E8M0 scale per 32 elements (OCP MX, numerics §6).
    Mxfp4 {
        /// How the power-of-two scale is chosen.
        scale: E8m0Rule,
        /// How elements are rounded to E2M1.
        rounding: Rounding,
        /// What is applied along the contraction axis before quantizing.
        transform: Transform,
    },
    /// E4M3 codes, one E8M0 scale per 32 elements (OCP MX, numerics §6).
    Mxfp8 {
        /// How the power-of-two scale is chosen.
        scale: E8m0Rule,
    },
    /// E4M3 codes with f32 scales (numerics §6).
    Fp8 {
        /// Which elements share an f32 scale.
        scaling: Fp8Scaling,
    },
}

/// How the two scale levels of NVFP4 are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "rule", rename_all = "snake_case", deny_unknown_fields)]
pub enum ScaleRule {
    /// One amax per tensor, block maximum mapped to 6 (TransformerEngine's default).
    #[serde(deserialize_with = "no_fields")]
    Tensor,
    /// One amax per row of the packed operand (TransformerEngine's `row_scaled_activation`).
    #[serde(deserialize_with = "no_fields")]
    Row,
    /// Block maximum mapped to 6 or to 4, whichever errs less (arXiv:2512.02010).
    FourOverSix {
        /// Largest E4M3 block scale that the tensor scale aims at.
        bound: ScaleBound,
        /// What is compared between the two candidates.
        error: BlockError,
        /// In which arithmetic the error is computed.
        arithmetic: ErrorArithmetic,
    },
    /// One amax per tensor, scales that clip a little, corrected by EDEN's factor and rounded
    /// stochastically: unbiased behind [`Transform::RandomHadamard`], which it comes with
    /// (MS-EDEN, arXiv:2601.22813).
    #[serde(deserialize_with = "no_fields")]
    Eden,
}

/// The E4M3 value that the largest block scale is mapped to under four-over-six.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ScaleBound {
    /// 256, TransformerEngine's default: leaves room for the factor 1.5.
    #[serde(rename = "256")]
    E4m3At256,
    /// 448, the largest E4M3 value.
    #[serde(rename = "448")]
    E4m3At448,
}

/// Error measure of a four-over-six block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockError {
    /// Sum of absolute errors.
    Mae,
    /// Sum of squared errors.
    Mse,
}

/// Arithmetic of the four-over-six error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorArithmetic {
    /// f32 throughout, in the original domain.
    Exact,
    /// Code times scale rounded to f16, in the scaled domain
    /// (`NVTE_NVFP4_4OVER6_ERR_USE_FAST_MATH`).
    Fast,
}

/// Rounding to E2M1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// To nearest, ties to the even code.
    NearestEven,
    /// Up with probability `floor(256 * frac) / 256`, 8 random bits per element.
    Stochastic,
}

/// What is applied along the contraction axis before quantizing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Transform {
    /// Nothing.
    #[serde(deserialize_with = "no_fields")]
    None,
    /// The 16-point Hadamard transform after a sign flip; both operands of a GEMM or neither.
    Hadamard {
        /// Which of the 16 inputs change sign.
        signs: SignVector,
    },
    /// The 128-point Hadamard transform after sign flips that the random key draws: others in
    /// every step, the same on both operands of a GEMM (numerics §11).
    #[serde(deserialize_with = "no_fields")]
    RandomHadamard,
}

impl Transform {
    /// Elements that are transformed together; the contraction axis is padded to whole ones.
    pub const fn points(self) -> usize {
        match self {
            Self::None => 1,
            Self::Hadamard { .. } => 16,
            Self::RandomHadamard => 128,
        }
    }
}

/// Sixteen signs: bit `i` set means that input `i` is negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignVector(pub u16);

impl SignVector {
    /// TransformerEngine's fixed vector, `+ + + - + - - - - - - + - + - -`.
    pub const TRANSFORMER_ENGINE: Self = Self(0xD7E8);
    /// No sign flips: the plain Hadamard transform.
    pub const PLAIN: Self = Self(0);
}

/// How an E8M0 block scale is chosen from the block maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum E8m0Rule {
    /// `2^(floor(log2 amax) - emax)` (OCP MX v1.0): the largest elements may saturate.
    Floor,
    /// `2^ceil(log2(amax / max))`: nothing saturates.
    RoundUp,
}

impl OperandSpec {
    /// True unless the operand keeps its own dtype.
    pub const fn is_quantized(&self) -> bool {
        !matches!(self, Self::HighPrecision)
    }

    /// The rounding that the operand's elements get, if any is chosen by the spec.
    pub const fn rounding(&self) -> Option<Rounding> {
        match self {
            Self::Nvfp4 { rounding, .. } | Self::Mxfp4 { rounding, .. } => Some(*rounding),
            Self::HighPrecision | Self::Mxfp8 { .. } | Self::Fp8 { .. } => None,
        }
    }

    /// True if the random key decides on bits of the operand.
    pub const fn is_random(&self) -> bool {
        matches!(self.rounding(), Some(Rounding::Stochastic))
            || matches!(
                self,
                Self::Nvfp4 {
                    scale: ScaleRule::Eden,
                    ..
                }
            )
    }

    /// Length of the contraction axis of the packed operand, before padding to whole blocks: `k`,
    /// but whole vectors of 128 behind [`Transform::RandomHadamard`], whose places all hold values.
    pub const fn packed_k(&self, k: usize) -> usize {
        match self.transform() {
            Transform::None | Transform::Hadamard { .. } => k,
            Transform::RandomHadamard => k.next_multiple_of(Transform::RandomHadamard.points()),
        }
    }

    /// The transform along the contraction axis.
    pub const fn transform(&self) -> Transform {
        match self {
            Self::Nvfp4 { transform, .. } | Self::Mxfp4 { transform, .. } => *transform,
            Self::HighPrecision | Self::Mxfp8 { .. } | Self::Fp8 { .. } => Transform::None,
        }
    }

    /// The same operand behind TransformerEngine's Hadamard transform; unchanged where the format
    /// takes none.
    #[must_use]
    pub const fn with_hadamard(self) -> Self {
        self.with_transform(Transform::Hadamard {
            signs: SignVector::TRANSFORMER_ENGINE,
        })
    }

    /// The same operand behind another transform; unchanged where the format takes none.
    #[must_use]
    pub const fn with_transform(self, transform: Transform) -> Self {
        match self {
            Self::Nvfp4 {
                block,
                scale,
                rounding,
                ..
            } => Self::Nvfp4 {
                block,
                scale,
                rounding,
                transform,
            },
            Self::Mxfp4 {
                scale, rounding, ..
            } => Self::Mxfp4 {
                scale,
                rounding,
                transform,
            },
            Self::HighPrecision | Self::Mxfp8 { .. } | Self::Fp8 { .. } => self,
        }
    }

    /// The same operand with another rounding; unchanged where the format has one rounding.
    #[must_use]
    pub const fn with_rounding(self, rounding: Rounding) -> Self {
        match self {
            Self::Nvfp4 {
                block,
                scale,
                transform,
                ..
            } => Self::Nvfp4 {
                block,
                scale,
                rounding,
                transform,
            },
            Self::Mxfp4 {
                scale, transform, ..
            } => Self::Mxfp4 {
                scale,
                rounding,
                transform,
            },
            Self::HighPrecision | Self::Mxfp8 { .. } | Self::Fp8 { .. } => self,
        }
    }

    /// True if one packing serves both contraction axes, so that a weight is quantized once.
    pub const fn is_transposable(&self) -> bool {
        match self {
            Self::Nvfp4 {
                block: BlockShape::Tile16x16,
                scale,
                rounding,
                transform,
            } => {
                !matches!(scale, ScaleRule::Row | ScaleRule::Eden)
                    && matches!(rounding, Rounding::NearestEven)
                    && matches!(transform, Transform::None)
            }
            Self::Fp8 {
                scaling: Fp8Scaling::Tensor | Fp8Scaling::Tile128x128,
            } => true,
            Self::Nvfp4 {
                block: BlockShape::Row16,
                ..
            }
            | Self::HighPrecision
            | Self::Mxfp4 { .. }
            | Self::Mxfp8 { .. }
            | Self::Fp8 {
                scaling: Fp8Scaling::Row128,
            } => false,
        }
    }
}

impl GemmSpec {
    /// Both operands in their own dtype.
    pub const HIGH_PRECISION: Self = Self {
        lhs: OperandSpec::HighPrecision,
        rhs: OperandSpec::HighPrecision,
    };

    /// True if either operand is quantized.
    pub const fn is_quantized(&self) -> bool {
        self.lhs.is_quantized() || self.rhs.is_quantized()
    }
}

impl Recipe {
    /// True if any GEMM has a quantized operand.
    pub const fn is_quantized(&self) -> bool {
        self.fprop.is_quantized() || self.dgrad.is_quantized() || self.wgrad.is_quantized()
    }

    /// True if linears multiply the mean over tokens on its own. In wgrad that takes both means, so
    /// all operands of backward are quantized; fprop does so where it is quantized.
    pub(crate) fn keeps_means_apart(&self) -> bool {
        let Self { dgrad, wgrad, .. } = self;
        let backward = [dgrad.lhs, dgrad.rhs, wgrad.lhs, wgrad.rhs];
        self.token_mean == TokenMean::Apart && backward.iter().all(OperandSpec::is_quantized)
    }

    /// Checks that every combination in the recipe has an arithmetic.
    ///
    /// # Errors
    /// [`RecipeError::Unsupported`] names the GEMM, the operand and what does not go together.
    pub fn validate(&self) -> Result<(), RecipeError> {
        for (name, gemm) in [
            ("fprop", &self.fprop),
            ("dgrad", &self.dgrad),
            ("wgrad", &self.wgrad),
        ] {
            for (side, operand) in [("lhs", &gemm.lhs), ("rhs", &gemm.rhs)] {
                if let Some(reason) = operand.conflict() {
                    return Err(RecipeError::Unsupported {
                        place: format!("{name}.{side}"),
                        reason,
                    });
                }
            }
            if gemm.lhs.transform() != gemm.rhs.transform() {
                return Err(RecipeError::Unsupported {
                    place: name.to_owned(),
                    reason: "the Hadamard transform must be on both operands with the same signs, \
                             or on neither: it cancels only in pairs",
                });
            }
        }
        self.check_token_mean()?;
        self.check_scale_renewal()?;
        self.check_backward_reads()
    }

    fn check_token_mean(&self) -> Result<(), RecipeError> {
        if self.token_mean == TokenMean::Quantized {
            return Ok(());
        }
        let refused = |place: &str, reason| {
            Err(RecipeError::Unsupported {
                place: place.to_owned(),
                reason,
            })
        };
        if !self.keeps_means_apart() {
            let reason = "a mean that is kept apart needs dgrad and wgrad with quantized operands";
            return refused("token_mean", reason);
        }
        // In wgrad both means are multiplied with each other, and no operand is.
        for (place, gemm) in [("fprop", &self.fprop), ("dgrad", &self.dgrad)] {
            // Both operands have the same transform.
            if gemm.lhs.transform() != Transform::None {
                let reason = "a mean that is kept apart is multiplied with the weight of the GEMM, \
                              which must not be transformed; wgrad may have a transform";
                return refused(place, reason);
            }
        }
        Ok(())
    }

    fn check_backward_reads(&self) -> Result<(), RecipeError> {
        if self.backward_reads == BackwardReads::Tensors {
            return Ok(());
        }
        let sides = [
            ("fprop.lhs", &self.fprop.lhs, "wgrad.lhs", &self.wgrad.lhs),
            ("fprop.rhs", &self.fprop.rhs, "dgrad.rhs", &self.dgrad.rhs),
        ];
        for (now, fprop, later, backward) in sides {
            let (place, reason) = if fprop.transform() != Transform::None {
                let reason = "backward reads the operands of fprop, which must not be transformed";
                (now, reason)
            } else if !backward.is_quantized() {
                let reason = "backward that reads the operands of fprop must quantize them";
                (later, reason)
            } else {
                continue;
            };
            return Err(RecipeError::Unsupported {
                place: place.to_owned(),
                reason,
            });
        }
        Ok(())
    }
}

impl OperandSpec {
    /// Why the parts of this operand do not go together, if they do not.
    pub(crate) const fn conflict(&self) -> Option<&'static str> {
        const ALONE: &str = "the random Hadamard transform is defined with EDEN scales only";
        let Self::Nvfp4 {
            block,
            scale,
            rounding,
            transform,
        } = self
        else {
            return match self.transform() {
                Transform::RandomHadamard => Some(ALONE),
                Transform::None | Transform::Hadamard { .. } => None,
            };
        };
        let hadamard = matches!(transform, Transform::Hadamard { .. });
        let stochastic = matches!(rounding, Rounding::Stochastic);
        let tile = matches!(block, BlockShape::Tile16x16);
        let random = matches!(transform, Transform::RandomHadamard);
        match scale {
            ScaleRule::Eden if tile => Some("EDEN scales need 1x16 blocks, not 16x16 tiles"),
            ScaleRule::Eden if stochastic => {
                Some("EDEN scales are defined with elements rounded to nearest")
            }
            ScaleRule::Eden if !random => Some("EDEN scales need the random Hadamard transform"),
            ScaleRule::Eden => None,
            ScaleRule::Tensor | ScaleRule::Row | ScaleRule::FourOverSix { .. } if random => {
                Some(ALONE)
            }
            ScaleRule::FourOverSix { .. } if hadamard => {
                Some("four-over-six is not defined together with the Hadamard transform")
            }
            ScaleRule::FourOverSix { .. } if stochastic => {
                Some("four-over-six is not defined together with stochastic rounding")
            }
            ScaleRule::Row if hadamard => {
                Some("row scales are not defined together with the Hadamard transform")
            }
            ScaleRule::Row if stochastic => {
                Some("row scales are not defined together with stochastic rounding")
            }
            ScaleRule::Row if tile => Some("row scales need 1x16 blocks, not 16x16 tiles"),
            ScaleRule::Tensor if tile && hadamard => {
                Some("16x16 tiles are not defined together with the Hadamard transform")
            }
            ScaleRule::Tensor | ScaleRule::Row | ScaleRule::FourOverSix { .. } => None,
        }
    }
}

/// Reads a variant without fields, and refuses any that are there: on unit variants of a tagged
/// enum, serde ignores them in spite of `deny_unknown_fields`.
fn no_fields<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct NoFields {}

    NoFields::deserialize(deserializer).map(|NoFields {}| ())
}

#[cfg(test)]
mod tests;
