//! Weights that come packed: from a checkpoint in 4 bits, not from a tensor.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::format::PackedMatrix;

/// Packed weights `[d_output, d_input]` by layer name, for
/// [`set_packed_weights`](crate::set_packed_weights).
#[derive(Clone, Debug, Default)]
pub struct PackedWeights {
    weights: HashMap<String, Arc<PackedWeight>>,
}

/// One packed weight, and what an engine has made of it.
pub struct PackedWeight {
    matrix: Arc<PackedMatrix>,
    loaded: OnceLock<Box<dyn Any + Send + Sync>>,
}

impl PackedWeights {
    /// Adds the weight of a layer.
    pub fn insert(&mut self, layer: &str, matrix: PackedMatrix) {
        let weight = PackedWeight {
            matrix: Arc::new(matrix),
            loaded: OnceLock::new(),
        };
        self.weights.insert(layer.to_owned(), Arc::new(weight));
    }

    /// The names of the layers, in no order.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.weights.keys().map(String::as_str)
    }

    /// True without weights.
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// The weight of a layer.
    pub fn get(&self, layer: &str) -> Option<Arc<PackedWeight>> {
        self.weights.get(layer).cloned()
    }
}

impl PackedWeight {
    /// Codes and scales.
    pub fn matrix(&self) -> &Arc<PackedMatrix> {
        &self.matrix
    }

    /// What an engine makes of the weight, made once: a copy in device memory, say.
    ///
    /// One engine asks; another gets what it makes itself, each time.
    pub fn loaded<T: Clone + Send + Sync + 'static>(
        &self,
        load: impl Fn(&Arc<PackedMatrix>) -> T,
    ) -> T {
        let loaded = self.loaded.get_or_init(|| Box::new(load(&self.matrix)));
        match loaded.downcast_ref::<T>() {
            Some(loaded) => loaded.clone(),
            None => load(&self.matrix),
        }
    }
}

impl fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackedWeight")
            .field("rows", &self.matrix.rows())
            .field("k", &self.matrix.k())
            .finish_non_exhaustive()
    }
}
