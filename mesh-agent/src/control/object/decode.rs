//! Tree → typed object, naming every field that is wrong or unknown.

use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Something wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) struct Mistake {
    /// Its path, e.g. `spec.rules[0].sources[1].type`; empty for the whole object.
    pub(in crate::control) field: String,
    /// What is wrong with it.
    pub(in crate::control) reason: String,
}

impl Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.field.is_empty() { f.write_str(&self.reason) } else { write!(f, "{}: {}", self.field, self.reason) }
    }
}

/// How the reason begins when a field is not known.
const UNKNOWN_FIELD: &str = "unknown field:";

impl Mistake {
    /// Whether it says no more than that we do not know the field.
    pub(in crate::control) fn is_unknown_field(&self) -> bool {
        self.reason.starts_with(UNKNOWN_FIELD)
    }

    pub(super) fn new(field: impl Display, reason: impl Display) -> Self {
        Self { field: field.to_string(), reason: reason.to_string() }
    }
}

/// Decodes `value`. The list names the fields that `T` does not have.
///
/// # Errors
/// The first field that cannot be read.
pub(super) fn decode<T: DeserializeOwned>(value: &Value) -> (Result<T, Mistake>, Vec<Mistake>) {
    let mut unknown = Vec::new();
    let mut note = |path: serde_ignored::Path<'_>| {
        let reason = format!("{UNKNOWN_FIELD} misspelt, or of another version?");
        unknown.push(Mistake::new(render(&path), reason));
    };
    let known = serde_ignored::Deserializer::new(value, &mut note);
    let result = serde_path_to_error::deserialize(known).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        Mistake { field, reason: error.into_inner().to_string() }
    });
    (result, unknown)
}

/// The path in the form of `serde_path_to_error`, without the steps through `Option` and newtypes.
fn render(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path::{Map, NewtypeStruct, NewtypeVariant, Root, Seq, Some};
    match path {
        Root => String::new(),
        Some { parent } | NewtypeStruct { parent } | NewtypeVariant { parent } => render(parent),
        Seq { parent, index } => format!("{}[{index}]", render(parent)),
        Map { parent, key } => {
            let parent = render(parent);
            if parent.is_empty() { key.clone() } else { format!("{parent}.{key}") }
        }
    }
}
