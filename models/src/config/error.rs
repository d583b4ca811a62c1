//! What can be wrong with a configuration.

/// Why a configuration cannot be a model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A dimension is zero, or below what the layer can do.
    #[error("{field} is {value}, must be at least {min}")]
    TooSmall {
        /// The field.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The least value.
        min: usize,
    },
    /// A dimension is beyond any model.
    #[error("{field} is {value}, the largest supported value is {max}")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The largest value.
        max: u64,
    },
    /// One dimension has to be a multiple of another.
    #[error("{field} is {value}, not a multiple of {divisor_field} = {divisor}")]
    NotDivisible {
        /// The dividend.
        field: &'static str,
        /// Its value.
        value: usize,
        /// The divisor.
        divisor_field: &'static str,
        /// Its value.
        divisor: usize,
    },
    /// A real number is outside of its range, or not finite.
    #[error("{field} is {value}, must be {range}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// The allowed range, in words.
        range: &'static str,
    },
    /// The pattern has no blocks.
    #[error("the block pattern is empty")]
    EmptyPattern,
    /// A letter that names no block.
    #[error("block pattern has {letter:?} at position {position}, expected 'M', '*' or '-'")]
    UnknownBlock {
        /// The letter.
        letter: char,
        /// Where it stands, from 0.
        position: usize,
    },
    /// No preset has this name.
    #[error("no preset {name:?}, there are: {known}")]
    UnknownPreset {
        /// The name that was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// The text is no JSON.
    #[error("config is not valid json: {reason}")]
    Json {
        /// What the parser says.
        reason: String,
    },
    /// A key that the model cannot be built without is not there.
    #[error("config key {key:?} is missing")]
    MissingKey {
        /// The key, or its accepted spellings.
        key: String,
    },
    /// A key has a value of another type.
    #[error("config key {key:?} is {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
    /// Two keys say different things about the same quantity.
    #[error("config contradicts itself: {first_key:?} is {first}, {second_key:?} is {second}")]
    Contradiction {
        /// One key.
        first_key: String,
        /// Its value.
        first: String,
        /// The other key.
        second_key: String,
        /// Its value.
        second: String,
    },
    /// A value asks for something that this implementation does not have.
    #[error("config key {key:?} is {value}: {reason}")]
    Unsupported {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What is not supported.
        reason: &'static str,
    },
}
