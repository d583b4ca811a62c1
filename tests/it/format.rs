//! Properties of layouts.
