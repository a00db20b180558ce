//! Paths: prefixes by whole segments, and their replacement.

use crate::model::route::PathEdit;

/// Whether `prefix` is a prefix of whole segments of `path`. A trailing `/` of the prefix means nothing, and `/` is
/// a prefix of everything, `*` included.
#[must_use]
pub fn has_prefix(path: &str, prefix: &str) -> bool {
    after_prefix(path, prefix).is_some()
}

/// What follows `prefix` in `path`: nothing, or something that begins with `/`.
fn after_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let prefix = prefix.trim_end_matches('/');
    if prefix.is_empty() {
        return Some(path);
    }
    path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// `path` after `edit`: never empty, never with a doubled `/` at the seam.
#[must_use]
pub fn edited(path: &str, edit: &PathEdit) -> String {
    let new = match edit {
        PathEdit::Full(full) => full.to_string(),
        PathEdit::Prefix { matched, replacement } => match after_prefix(path, matched) {
            Some("") => replacement.to_string(),
            Some(rest) => format!("{}{rest}", replacement.trim_end_matches('/')),
            None => path.to_owned(),
        },
    };
    if new.starts_with('/') { new } else { format!("/{new}") }
}
