//! What JSON has no word for.

use serde::{Deserialize, Deserializer};

/// A number, or NaN for the null that JSON has in place of one that is not finite.
pub(crate) fn number_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let number = Option::<f64>::deserialize(deserializer)?;
    Ok(number.unwrap_or(f64::NAN))
}
