//! Block letters: `M` Mamba-2, `*` attention, `-` MLP. "M-M*-" is a model of five blocks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::config::ConfigError;

/// What mixes in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MixerKind {
    /// Mamba-2, letter `M`.
    Mamba,
    /// Grouped-query attention, letter `*`.
    Attention,
    /// Squared-ReLU MLP, letter `-`.
    Mlp,
}

impl MixerKind {
    /// The letter in a pattern.
    pub fn letter(self) -> char {
        match self {
            Self::Mamba => 'M',
            Self::Attention => '*',
            Self::Mlp => '-',
        }
    }

    /// The kind of a letter.
    pub fn from_letter(letter: char) -> Option<Self> {
        [Self::Mamba, Self::Attention, Self::Mlp]
            .into_iter()
            .find(|k| k.letter() == letter)
    }

    /// Names of the linear layers of this mixer, in the order of its forward pass.
    pub fn linears(self) -> &'static [&'static str] {
        match self {
            Self::Mamba => &["in_proj", "out_proj"],
            Self::Attention => &["q_proj", "k_proj", "v_proj", "o_proj"],
            Self::Mlp => &["up_proj", "down_proj"],
        }
    }
}

/// The mixers of all blocks, first to last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Vec<MixerKind>);

impl Pattern {
    /// A pattern of these blocks.
    pub fn new(blocks: Vec<MixerKind>) -> Self {
        Self(blocks)
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The mixers in order.
    pub fn iter(&self) -> impl Iterator<Item = MixerKind> {
        self.0.iter().copied()
    }

    /// How many blocks have this mixer.
    pub fn count(&self, kind: MixerKind) -> usize {
        self.iter().filter(|&k| k == kind).count()
    }

    /// Indices of the blocks with this mixer.
    pub fn indices(&self, kind: MixerKind) -> Vec<usize> {
        self.iter()
            .enumerate()
            .filter(|&(_, k)| k == kind)
            .map(|(i, _)| i)
            .collect()
    }
}

impl FromStr for Pattern {
    type Err = ConfigError;

    fn from_str(letters: &str) -> Result<Self, ConfigError> {
        let block = |(position, letter)| {
            MixerKind::from_letter(letter).ok_or(ConfigError::UnknownBlock { letter, position })
        };
        letters
            .chars()
            .enumerate()
            .map(block)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter()
            .try_for_each(|kind| write!(f, "{}", kind.letter()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = ConfigError;

    fn try_from(letters: String) -> Result<Self, ConfigError> {
        letters.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}
