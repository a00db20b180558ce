//! How the demo prints.

use serde_json::Value;

/// Begins an act.
pub fn title(text: &str) {
    println!("\n\x1b[1m== {text} ==\x1b[0m");
}

/// One finding.
pub fn line(text: &str) {
    println!("   {text}");
}

/// A command as the reader could type it.
pub fn command(text: &str) {
    println!("\x1b[2m   $ {text}\x1b[0m");
}

/// A connection of the access log: who, to whom, under which identities, how.
pub fn connection(entry: &Value) -> String {
    let side =
        |name: &str| match (text(entry, &format!("/{name}/namespace")), text(entry, &format!("/{name}/workload"))) {
            (Some(namespace), Some(workload)) => format!("{namespace}/{workload}"),
            _ => text(entry, &format!("/{name}/ip")).unwrap_or("unknown").to_owned(),
        };
    let identity = |name: &str| text(entry, &format!("/{name}/identity")).unwrap_or("unknown").to_owned();
    let rule = text(entry, "/rule").map(|rule| format!(" by {rule}")).unwrap_or_default();
    format!(
        "{:22} -> {:18} {}{rule}, {}\n      {} -> {}",
        side("source"),
        side("destination"),
        text(entry, "/outcome").unwrap_or("-"),
        text(entry, "/security").unwrap_or("-"),
        identity("source"),
        identity("destination"),
    )
}

/// The text that a JSON pointer (RFC 6901) leads to, e.g. `/source/identity`.
pub fn text<'a>(entry: &'a Value, pointer: &str) -> Option<&'a str> {
    entry.pointer(pointer)?.as_str()
}
