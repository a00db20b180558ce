//! Which room of the agent may use which crate and which other room: the table of ARCHITECTURE.md as code.
//!
//! It reads text, not syntax: a path `name::` anywhere in code counts, comments and tests do not.

use super::SourceFile;

/// The agent's rooms that do no IO and await nothing.
const PURE: &[&str] = &["model", "policy", "snapshot", "route", "explain"];
/// What a pure room may know besides pure rooms: `explain` asks for endpoints as the data path does.
const PURE_ENOUGH: &[(&str, &str)] = &[("explain", "balance")];

/// A crate that only some rooms may name.
struct Owned {
    krate: &'static str,
    rooms: &'static [&'static str],
}

/// Everything not listed here may be used anywhere outside the pure rooms.
const OWNED: &[Owned] = &[
    Owned { krate: "aya", rooms: &["capture"] },
    Owned { krate: "aya_log", rooms: &["capture"] },
    Owned { krate: "rustls", rooms: &["identity", "tls"] },
    Owned { krate: "tokio_rustls", rooms: &["identity", "tls"] },
    Owned { krate: "webpki", rooms: &["identity", "tls"] },
    Owned { krate: "rcgen", rooms: &["identity"] },
    Owned { krate: "kube", rooms: &["control"] },
    Owned { krate: "k8s_openapi", rooms: &["control"] },
    Owned { krate: "inotify", rooms: &["control", "cni"] },
    Owned { krate: "prometheus_client", rooms: &["telemetry", "admin", "agent"] },
    Owned { krate: "clap", rooms: &["config", "cli", "main"] },
];

/// What a pure room must not name besides the owned crates.
const IMPURE: &[&str] = &[
    "tokio",
    "tonic",
    "hyper",
    "h2",
    "nix",
    "socket2",
    "std::fs",
    "std::net::Tcp",
    "std::thread",
    "std::time::Instant",
];

/// Rooms that must not know each other: (who, whom).
const FORBIDDEN_ROOMS: &[(&str, &str)] = &[
    ("proxy", "control"),
    ("proxy", "admin"),
    ("balance", "proxy"),
    ("control", "proxy"),
    ("control", "capture"),
    ("identity", "proxy"),
    ("identity", "capture"),
    ("tls", "proxy"),
    ("telemetry", "proxy"),
];

/// Adds each forbidden edge of `file` to `found`.
pub fn check(file: &SourceFile, found: &mut Vec<String>) {
    let Some(room) = room(&file.path) else { return };
    for (number, line) in file.code() {
        let code = line.split("//").next().unwrap_or(line);
        let mut violation = |what: String| found.push(format!("{}:{number}: {what}", file.path));
        for owned in OWNED {
            if !owned.rooms.contains(&room) && names(code, owned.krate) {
                violation(format!("room `{room}` uses {}; only {} may", owned.krate, owned.rooms.join(", ")));
            }
        }
        if PURE.contains(&room) {
            pure(room, code, &mut violation);
        }
        for (who, whom) in FORBIDDEN_ROOMS {
            if *who == room && names(code, &format!("crate::{whom}")) {
                violation(format!("room `{who}` knows nothing about `{whom}`"));
            }
        }
        if room != "sys" && has_word(code, "unsafe") {
            violation("`unsafe` lives in sys.rs only".to_owned());
        }
        if !["config", "main"].contains(&room) && (names(code, "std::env") || names(code, "env")) {
            violation("only `config` reads the environment and the arguments".to_owned());
        }
    }
}

fn pure(room: &str, code: &str, violation: &mut impl FnMut(String)) {
    // The one way in which a snapshot tells that it changed.
    let code = if room == "snapshot" { code.replace("tokio::sync::watch", "") } else { code.to_owned() };
    for krate in IMPURE {
        if names(&code, krate) {
            violation(format!("pure room `{room}` uses {krate}"));
        }
    }
    for other in code.split("crate::").skip(1) {
        let other: String = other.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if !PURE.contains(&other.as_str()) && !PURE_ENOUGH.contains(&(room, other.as_str())) {
            violation(format!("pure room `{room}` knows only pure rooms, not `{other}`"));
        }
    }
}

/// The room a file of the agent belongs to: its folder, or its own name at the top level.
fn room(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("mesh-agent/src/")?;
    let room = inside.split('/').next()?;
    Some(room.strip_suffix(".rs").unwrap_or(room))
}

/// Whether `code` has the path `name::…`, and not as the end of a longer name.
fn names(code: &str, name: &str) -> bool {
    let path = if name.ends_with("Tcp") { name.to_owned() } else { format!("{name}::") };
    starts_a_word(code, &path) || starts_a_word(code, &format!("use {name};"))
}

fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let after = code.get(at + word.len()..).and_then(|rest| rest.chars().next());
        !follows_name(code, at) && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

fn starts_a_word(code: &str, text: &str) -> bool {
    code.match_indices(text).any(|(at, _)| !follows_name(code, at))
}

/// Whether what stands before `at` belongs to the same path.
fn follows_name(code: &str, at: usize) -> bool {
    code.get(..at)
        .and_then(|before| before.chars().next_back())
        .is_some_and(|c| c.is_alphanumeric() || "_:".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check(&SourceFile { path: path.to_owned(), text: text.to_owned() }, &mut found);
        found
    }

    #[test]
    fn forbidden_edges_are_found() {
        for (path, line) in [
            ("mesh-agent/src/policy/mod.rs", "use tokio::sync::watch;"),
            ("mesh-agent/src/snapshot/mod.rs", "use tokio::sync::mpsc;"),
            ("mesh-agent/src/model/addr.rs", "let s: std::net::TcpStream;"),
            ("mesh-agent/src/model/addr.rs", "use crate::proxy::copy;"),
            ("mesh-agent/src/policy/mod.rs", "use crate::balance::eligible;"),
            ("mesh-agent/src/explain/walk.rs", "use crate::capture::Kernel;"),
            ("mesh-agent/src/proxy/accept.rs", "    aya::maps::HashMap::new()"),
            ("mesh-agent/src/proxy/accept.rs", "use crate::control::kube;"),
            ("mesh-agent/src/proxy/accept.rs", "let x = rustls::Version::TLS13;"),
            ("mesh-agent/src/agent.rs", "use kube::Client;"),
            ("mesh-agent/src/drain.rs", "unsafe { close(fd) }"),
            ("mesh-agent/src/drain.rs", "std::env::var(\"X\")"),
            ("mesh-agent/src/drain.rs", "use std::env;"),
        ] {
            assert!(!found(path, line).is_empty(), "{path}: {line}");
        }
    }

    #[test]
    fn permitted_edges_are_not() {
        for (path, line) in [
            ("mesh-agent/src/snapshot/mod.rs", "use tokio::sync::watch;"),
            ("mesh-agent/src/snapshot/mod.rs", "let p = crate::policy::selecting(w);"),
            ("mesh-agent/src/explain/walk.rs", "use crate::balance::eligible;"),
            ("mesh-agent/src/capture/load.rs", "use aya::Ebpf;"),
            ("mesh-agent/src/proxy/accept.rs", "// unsafe, aya::x and crate::control::y in a comment"),
            ("mesh-agent/src/proxy/accept.rs", "#![deny(unsafe_op_in_unsafe_fn)]"),
            ("mesh-agent/src/proxy/accept.rs", "#[cfg(test)]\nuse rustls::x;"),
            ("mesh-agent/src/sys.rs", "unsafe { close(fd) }"),
            ("mesh-agent/src/config/mod.rs", "std::env::args()"),
            ("mesh-agent/src/tls/tests.rs", "use rcgen::x;"),
            ("mesh-ebpf/src/main.rs", "unsafe { aya::x() }"),
            ("tests/src/lib.rs", "use rustls::x;"),
        ] {
            assert_eq!(found(path, line), Vec::<String>::new(), "{path}: {line}");
        }
    }
}
