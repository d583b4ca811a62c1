//! What accompanies one forward pass: activation dtype, padding, how many tokens came before, and
//! an optional observer.

use burn::tensor::backend::Backend;
use burn::tensor::{Bool, DType, Tensor};

/// Sees intermediate values by name; all of them are `[batch, seq, channels]`.
pub type Observer<'a, B> = dyn FnMut(&str, Tensor<B, 3>) + 'a;

/// The circumstances of one forward pass.
pub struct Pass<'a, B: Backend> {
    dtype: DType,
    /// True at real tokens, `[batch, seq]`.
    tokens: Option<Tensor<B, 2, Bool>>,
    /// Number of positions before these, of which the caches know.
    past: usize,
    /// True at real tokens, `[batch, past + seq]`.
    keys: Option<Tensor<B, 2, Bool>>,
    observer: Option<&'a mut Observer<'a, B>>,
    prefix: String,
}

impl<B: Backend> std::fmt::Debug for Pass<'_, B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass")
            .field("dtype", &self.dtype)
            .finish_non_exhaustive()
    }
}

impl<'a, B: Backend> Pass<'a, B> {
    /// A pass with activations of this dtype, without padding, unobserved.
    pub fn new(dtype: DType) -> Self {
        Self {
            dtype,
            tokens: None,
            past: 0,
            keys: None,
            observer: None,
            prefix: String::new(),
        }
    }

    /// Treats positions where `tokens` is false as padding: they influence nothing.
    pub fn with_tokens(self, tokens: Tensor<B, 2, Bool>) -> Self {
        Self {
            keys: Some(tokens.clone()),
            tokens: Some(tokens),
            ..self
        }
    }

    /// Lets the tokens of this pass follow `past` earlier ones. `keys`: true at real tokens among
    /// all of them, `[batch, past + seq]`; `None` if all are.
    pub(crate) fn after(self, past: usize, keys: Option<Tensor<B, 2, Bool>>) -> Self {
        Self { past, keys, ..self }
    }

    /// Shows intermediate values to `observer`.
    pub fn with_observer(self, observer: &'a mut Observer<'a, B>) -> Self {
        Self {
            observer: Some(observer),
            ..self
        }
    }

    /// Dtype of the activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// True at real tokens, `[batch, seq]`; none if all are.
    pub fn tokens(&self) -> Option<&Tensor<B, 2, Bool>> {
        self.tokens.as_ref()
    }

    /// Number of positions before these.
    pub fn past(&self) -> usize {
        self.past
    }

    /// True at real tokens among those before and these, `[batch, past + seq]`; none if all are.
    pub fn keys(&self) -> Option<&Tensor<B, 2, Bool>> {
        self.keys.as_ref()
    }

    /// Runs a part of the model; what it shows is named below `name`.
    pub(crate) fn within<R>(&mut self, name: &str, part: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.prefix.len();
        if outer > 0 {
            self.prefix.push('.');
        }
        self.prefix.push_str(name);
        let result = part(self);
        self.prefix.truncate(outer);
        result
    }

    /// Whether somebody looks at intermediate values.
    pub(crate) fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// Shows a value called `name`; `value` is only called when somebody looks.
    pub(crate) fn observe(&mut self, name: &str, value: impl FnOnce() -> Tensor<B, 3>) {
        if let Some(observer) = &mut self.observer {
            let separator = if self.prefix.is_empty() { "" } else { "." };
            observer(&format!("{}{separator}{name}", self.prefix), value());
        }
    }

    /// `x` with zeros at padding. `x`: `[batch, seq, channels]`.
    pub(crate) fn zero_padding(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        match &self.tokens {
            Some(tokens) => {
                let shape = x.dims();
                x.mask_fill(
                    tokens
                        .clone()
                        .bool_not()
                        .unsqueeze_dim::<3>(2)
                        .expand(shape),
                    0.0,
                )
            }
            None => x,
        }
    }
}
