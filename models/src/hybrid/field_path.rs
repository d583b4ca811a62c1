//! The name of the module that a visitor is in: how parameters are called in files and messages.

/// The field names from the root to the current module.
///
/// Enum variants are no fields: `layers.0.mixer` is the same name whichever mixer it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct FieldPath(Vec<Option<String>>);

impl FieldPath {
    pub(crate) fn enter(&mut self, name: &str, container: &str) {
        self.0
            .push((!container.starts_with("Enum:")).then(|| name.to_owned()));
    }

    pub(crate) fn exit(&mut self) {
        self.0.pop();
    }

    pub(crate) fn name(&self) -> String {
        self.0
            .iter()
            .flatten()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join(".")
    }
}
