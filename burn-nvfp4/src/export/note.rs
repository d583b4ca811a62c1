//! The amaxes behind the tensor scales of a file, as one entry of its metadata.
//!
//! `name:amax:q_max` for each linear, the two numbers as the hexadecimal bits of an f32, separated
//! by spaces. Names in checkpoints hold neither.

use std::collections::BTreeMap;

use crate::format::PackedMatrix;

/// The amax and what it was mapped to, by name of the linear.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AmaxNote(BTreeMap<String, (f32, f32)>);

impl AmaxNote {
    /// The metadata key.
    pub const KEY: &'static str = "burn_nvfp4.amax";

    /// Makes room for the tensor scale of a linear: the encoded note keeps its length.
    pub fn reserve(&mut self, name: &str) {
        self.0.insert(name.to_owned(), (0.0, 0.0));
    }

    /// Notes the tensor scale of a linear.
    pub fn insert(&mut self, name: &str, matrix: &PackedMatrix) {
        let scale = matrix.tensor_scale();
        self.0
            .insert(name.to_owned(), (scale.max_amax(), scale.q_max));
    }

    /// The tensor scale of a linear, for [`ServingFormat::join`](super::ServingFormat::join).
    pub fn get(&self, name: &str) -> Option<(f32, f32)> {
        self.0.get(name).copied()
    }

    /// Adds the entries of another note under other names.
    pub fn extend_renamed(&mut self, other: Self, rename: impl Fn(&str) -> String) {
        let entries = other.0.into_iter();
        self.0
            .extend(entries.map(|(name, scale)| (rename(&name), scale)));
    }

    /// True if nothing is noted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The metadata value.
    pub fn encode(&self) -> String {
        let entries = self.0.iter().map(|(name, (amax, q_max))| {
            format!("{name}:{:08x}:{:08x}", amax.to_bits(), q_max.to_bits())
        });
        entries.collect::<Vec<_>>().join(" ")
    }

    /// Reads a metadata value. Entries that are not ones are left out: without them the amax
    /// follows from the tensor scale.
    pub fn decode(value: &str) -> Self {
        let bits = |field: &str| u32::from_str_radix(field, 16).ok().map(f32::from_bits);
        let entry = |entry: &str| {
            let mut fields = entry.rsplitn(3, ':');
            let (q_max, amax, name) = (fields.next()?, fields.next()?, fields.next()?);
            Some((name.to_owned(), (bits(amax)?, bits(q_max)?)))
        };
        Self(value.split(' ').filter_map(entry).collect())
    }
}
