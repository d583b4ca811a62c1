//! Typed access to the keys of a JSON object, with aliases that have to agree.
//!
//! `null` counts as absent.

use crate::config::ConfigError;
use crate::config::lenient::Lenient;

impl Lenient {
    /// A number in any notation: `1`, `1e30`, `Infinity`, `{"__float__": "Infinity"}`.
    fn real(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "settings are far below 2^53")]
            Self::Natural(value) => Some(*value as f64),
            Self::Real(value) => Some(*value),
            Self::Object(fields) => match fields.as_slice() {
                [(name, Self::Text(text))] if name == "__float__" => text.parse().ok(),
                _ => None,
            },
            Self::Flag(_) | Self::Text(_) | Self::List(_) | Self::Null => None,
        }
    }

    fn natural(&self) -> Option<u64> {
        if let Self::Natural(value) = self {
            Some(*value)
        } else {
            None
        }
    }

    fn list(&self) -> Option<&[Self]> {
        if let Self::List(values) = self {
            Some(values)
        } else {
            None
        }
    }

    /// A value for an error message, cut off where it would fill a screen.
    fn show(&self) -> String {
        const SHOWN: usize = 100;
        let whole = match self {
            Self::Flag(value) => value.to_string(),
            Self::Natural(value) => value.to_string(),
            Self::Real(value) => value.to_string(),
            Self::Text(value) => format!("{value:?}"),
            Self::List(values) => {
                let values: Vec<_> = values.iter().map(Self::show).collect();
                format!("[{}]", values.join(", "))
            }
            Self::Object(_) => "an object".into(),
            Self::Null => "null".into(),
        };
        match whole.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}..", &whole[..end]),
            None => whole,
        }
    }

    /// Whether two values mean the same; 1 and 1.0 do.
    fn same(&self, other: &Self) -> bool {
        match (self.real(), other.real()) {
            (Some(a), Some(b)) => a == b,
            _ => self == other,
        }
    }
}

/// The keys of one `config.json`.
pub(super) struct Keys(Lenient);

impl Keys {
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let read = Lenient::parse(text).map_err(|reason| ConfigError::Json { reason })?;
        if let Lenient::Object(_) = read {
            return Ok(Self(read));
        }
        let reason = format!("an object of keys is needed, not {}", read.show());
        Err(ConfigError::Json { reason })
    }

    /// The value of the first alias that is present; all that are present have to agree.
    fn find<'a>(&self, aliases: &[&'a str]) -> Result<Option<(&'a str, &Lenient)>, ConfigError> {
        let mut found: Option<(&'a str, &Lenient)> = None;
        for &key in aliases {
            let Some(value) = self.0.get(key).filter(|&value| *value != Lenient::Null) else {
                continue;
            };
            match found {
                None => found = Some((key, value)),
                Some((_, first)) if first.same(value) => {}
                Some((first_key, first)) => {
                    return Err(ConfigError::Contradiction {
                        first_key: first_key.into(),
                        first: first.show(),
                        second_key: key.into(),
                        second: value.show(),
                    });
                }
            }
        }
        Ok(found)
    }

    /// The value under any of these keys, converted, or `None` if there is none.
    fn get<'a, 's, T>(
        &'s self,
        aliases: &[&'a str],
        expected: &'static str,
        convert: impl FnOnce(&'s Lenient) -> Option<T>,
    ) -> Result<Option<(&'a str, T)>, ConfigError> {
        let Some((key, raw)) = self.find(aliases)? else {
            return Ok(None);
        };
        let wrong = || ConfigError::WrongType {
            key: key.into(),
            found: raw.show(),
            expected,
        };
        convert(raw)
            .map(|value| Some((key, value)))
            .ok_or_else(wrong)
    }

    fn get_size(&self, aliases: &[&str]) -> Result<Option<usize>, ConfigError> {
        let natural = |raw: &Lenient| usize::try_from(raw.natural()?).ok();
        Ok(self
            .get(aliases, "a whole number", natural)?
            .map(|(_, size)| size))
    }

    pub(super) fn size(&self, aliases: &[&str]) -> Result<usize, ConfigError> {
        let missing = || ConfigError::MissingKey {
            key: aliases.join(" or "),
        };
        self.get_size(aliases)?.ok_or_else(missing)
    }

    pub(super) fn size_or(&self, aliases: &[&str], default: usize) -> Result<usize, ConfigError> {
        Ok(self.get_size(aliases)?.unwrap_or(default))
    }

    pub(super) fn real_or(&self, aliases: &[&str], default: f64) -> Result<f64, ConfigError> {
        Ok(self
            .get(aliases, "a number", Lenient::real)?
            .map_or(default, |(_, real)| real))
    }

    /// A list of numbers, with the key it was found under.
    pub(super) fn reals<'a>(
        &self,
        aliases: &[&'a str],
    ) -> Result<Option<(&'a str, Vec<f64>)>, ConfigError> {
        let reals = |raw: &Lenient| raw.list()?.iter().map(Lenient::real).collect();
        self.get(aliases, "a list of numbers", reals)
    }

    pub(super) fn flag_or(&self, aliases: &[&str], default: bool) -> Result<bool, ConfigError> {
        let flag = |raw: &Lenient| {
            if let Lenient::Flag(value) = raw {
                Some(*value)
            } else {
                None
            }
        };
        Ok(self
            .get(aliases, "true or false", flag)?
            .map_or(default, |(_, flag)| flag))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        Ok(self
            .get(&[key], "a string", Lenient::text)?
            .map(|(_, text)| text))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ConfigError> {
        fn texts(raw: &Lenient) -> Option<Vec<&str>> {
            raw.list()?.iter().map(Lenient::text).collect()
        }
        Ok(self
            .get(&[key], "a list of strings", texts)?
            .map(|(_, texts)| texts))
    }

    pub(super) fn token_or(&self, key: &str, default: u32) -> Result<u32, ConfigError> {
        Ok(self
            .get(&[key], "a token id", token)?
            .map_or(default, |(_, id)| id))
    }

    /// One token id, or a list of them.
    pub(super) fn tokens_or(&self, key: &str, default: u32) -> Result<Vec<u32>, ConfigError> {
        let tokens = |raw: &Lenient| match raw.list() {
            Some(values) => values.iter().map(token).collect(),
            None => token(raw).map(|id| vec![id]),
        };
        let tokens = self.get(&[key], "a token id or a list of them", tokens)?;
        Ok(tokens.map_or(vec![default], |(_, ids)| ids))
    }

    pub(super) fn expect_text(
        &self,
        key: &str,
        allowed: &[&str],
        reason: &'static str,
    ) -> Result<(), ConfigError> {
        match self.text(key)? {
            Some(text) if !allowed.contains(&text) => {
                let (key, value) = (key.into(), format!("{text:?}"));
                Err(ConfigError::Unsupported { key, value, reason })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn expect_false(&self, key: &str, reason: &'static str) -> Result<(), ConfigError> {
        if self.flag_or(&[key], false)? {
            let (key, value) = (key.into(), "true".into());
            return Err(ConfigError::Unsupported { key, value, reason });
        }
        Ok(())
    }

    pub(super) fn expect_absent(&self, key: &str, reason: &'static str) -> Result<(), ConfigError> {
        match self.find(&[key])? {
            Some((_, raw)) => {
                let (key, value) = (key.into(), raw.show());
                Err(ConfigError::Unsupported { key, value, reason })
            }
            None => Ok(()),
        }
    }
}

fn token(raw: &Lenient) -> Option<u32> {
    u32::try_from(raw.natural()?).ok()
}
