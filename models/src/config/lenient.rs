//! The text of a `config.json` as a value: JSON5, whose only use here is that it knows bare
//! `Infinity` and `NaN`.
//!
//! The library's parser calls itself for every bracket that opens. What it is read into here says
//! how deep that may go ([`MAX_DEPTH`]), so that a file of brackets is an error and does not run
//! out of stack.

use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

/// How many lists and objects may lie in each other.
const MAX_DEPTH: usize = 64;

/// A JSON value that keeps infinities.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Lenient {
    /// `true` or `false`.
    Flag(bool),
    /// A whole number from 0 on.
    Natural(u64),
    /// Any other number.
    Real(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Lenient>),
    /// Keys and values in the order of the text; the last of equal keys counts.
    Object(Vec<(String, Lenient)>),
    /// Nothing.
    Null,
}

impl Lenient {
    /// Reads a text.
    ///
    /// # Errors
    /// What the parser says, on one line.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        /// The whole text.
        struct Root(Lenient);
        impl<'de> serde::Deserialize<'de> for Root {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Nested { depth: 0 }.deserialize(deserializer).map(Self)
            }
        }
        let root = json5::from_str::<Root>(text);
        root.map(|Root(value)| value)
            .map_err(|error| error.to_string().replace('\n', " "))
    }

    /// The value of a key, if this is an object that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Self::Object(fields) = self else {
            return None;
        };
        let mut fields = fields.iter().rev();
        fields.find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// The string that this is.
    pub(crate) fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self {
            Some(text)
        } else {
            None
        }
    }
}

/// A value inside of `depth` others.
#[derive(Clone, Copy)]
struct Nested {
    depth: usize,
}

impl Nested {
    /// What lies inside of this value.
    fn inside<E: Error>(self) -> Result<Self, E> {
        match self.depth {
            MAX_DEPTH => Err(E::custom(format_args!(
                "lists and objects lie in each other more than {MAX_DEPTH} deep"
            ))),
            depth => Ok(Self { depth: depth + 1 }),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Nested {
    type Value = Lenient;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Lenient, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Nested {
    type Value = Lenient;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Lenient, E> {
        Ok(Lenient::Flag(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Lenient, E> {
        Ok(Lenient::Natural(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Lenient, E> {
        Ok(match u64::try_from(value) {
            Ok(natural) => Lenient::Natural(natural),
            Err(_) => Lenient::Real(value as f64),
        })
    }

    fn visit_f64<E>(self, value: f64) -> Result<Lenient, E> {
        Ok(Lenient::Real(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Lenient, E> {
        Ok(Lenient::Text(text.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Lenient, E> {
        Ok(Lenient::Null)
    }

    fn visit_none<E>(self) -> Result<Lenient, E> {
        Ok(Lenient::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Lenient, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Lenient, A::Error> {
        let inside = self.inside()?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(inside)? {
            values.push(value);
        }
        values.shrink_to_fit();
        Ok(Lenient::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Lenient, A::Error> {
        let inside = self.inside()?;
        let mut fields = Vec::new();
        while let Some(key) = object.next_key::<String>()? {
            fields.push((key, object.next_value_seed(inside)?));
        }
        fields.shrink_to_fit();
        Ok(Lenient::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_does_not_have_is_read_and_the_last_of_equal_keys_counts() {
        let value = Lenient::parse("{\"a\": [1, -2, Infinity, null], a: true, 'b': {}}").unwrap();
        assert_eq!(value.get("a"), Some(&Lenient::Flag(true)));
        assert_eq!(value.get("b"), Some(&Lenient::Object(Vec::new())));
        assert_eq!(value.get("c"), None);
        let Lenient::Object(fields) = value else {
            unreachable!()
        };
        let list = [
            Lenient::Natural(1),
            Lenient::Real(-2.0),
            Lenient::Real(f64::INFINITY),
            Lenient::Null,
        ];
        assert_eq!(fields[0].1, Lenient::List(list.into()));
    }

    /// The library's parser calls itself for every bracket: 100 000 of them overflowed the stack,
    /// which ends the process without a line.
    #[test]
    fn brackets_without_end_are_an_error() {
        for (open, close) in [("[", "]"), ("{a:", "}"), ("[{a:", "}]")] {
            let deep = open.repeat(100_000);
            let error = Lenient::parse(&deep).unwrap_err();
            assert!(error.contains("more than 64 deep"), "{error}");
            let levels = 64 / open.matches(['[', '{']).count();
            let whole = open.repeat(levels) + "1" + &close.repeat(levels);
            assert!(Lenient::parse(&whole).is_ok(), "{open}");
        }
    }
}
