//! Properties of quantization.
