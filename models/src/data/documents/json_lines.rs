//! Documents of a jsonl file: one JSON object a line, one field of it the text.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::{Document, Documents, Input, Text, stream};
use crate::data::DataError;

/// The documents of a file. A null is an empty document, a blank line is none.
pub(super) fn documents(input: &Input, field: &str) -> Result<Documents, DataError> {
    let path: Arc<Path> = input.path.clone().into();
    let field = field.to_owned();
    let (stream, counted) = stream(input)?;
    let mut stream = BufReader::with_capacity(1 << 16, stream);
    let (mut line, mut number, mut failed) = (Vec::new(), 0u64, false);
    Ok(Box::new(std::iter::from_fn(move || {
        loop {
            if failed {
                return None;
            }
            line.clear();
            number += 1;
            match stream.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) if line.iter().all(u8::is_ascii_whitespace) => {}
                Ok(_) => {
                    let found = text(&line, &field);
                    failed = found.is_err();
                    return Some(
                        found
                            .map_err(|reason| DataError::Record {
                                path: path.to_path_buf(),
                                unit: "line",
                                number,
                                reason,
                            })
                            .map(|text| {
                                let range = 0..text.len();
                                let text = Arc::new(Text::read(text, &path));
                                let read = counted.take();
                                Document { text, range, read }
                            }),
                    );
                }
                Err(error) => {
                    failed = true;
                    return Some(Err(DataError::io(&*path, "read")(error)));
                }
            }
        }
    })))
}

/// The text of an object.
fn text(line: &[u8], field: &str) -> Result<String, String> {
    let mut object = serde_json::Deserializer::from_slice(line);
    let found = Field(field)
        .deserialize(&mut object)
        .map_err(|error| error.to_string())?;
    object.end().map_err(|error| error.to_string())?;
    match found {
        Some(text) => Ok(text.unwrap_or_default()),
        None => Err(format!("no field {field:?} in the object")),
    }
}

/// Takes one field of an object and passes over the others, without a copy of them.
struct Field<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = Option<Option<String>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Field<'_> {
    type Value = Option<Option<String>>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "an object with the text in its field {:?}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            if key == self.0 {
                found = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}
