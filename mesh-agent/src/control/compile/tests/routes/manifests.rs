//! Our own manifests for the cases of the upstream mesh suite, and upstream's where they are on this machine.

use super::route;

/// Manifests to run a test with: ours, and upstream's file `stem`.yaml where `GATEWAY_API_DIR`, or the folder beside
/// the repository, has it.
pub(super) fn all(stem: &str) -> Vec<String> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/gateway-api");
    let dir = option_env!("GATEWAY_API_DIR").unwrap_or(beside);
    let file = std::path::Path::new(dir).join(format!("conformance/tests/mesh/{stem}.yaml"));
    let upstream = std::fs::read_to_string(&file).ok();
    // A folder that lacks a file would make these tests compare nothing in silence.
    assert!(upstream.is_some() || !std::path::Path::new(dir).is_dir(), "{} is missing", file.display());
    std::iter::once(own(stem)).chain(upstream).collect()
}

/// Ours: the files that the suite on the wire applies.
fn own(stem: &str) -> String {
    let file = format!("{}/../tests/gateway/{stem}.yaml", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// A route that marks what passes it by the answer header `X-Header-Set`.
pub(super) fn marking(namespace: &str, name: &str, parent: &str, mark: &str, backend: &str) -> String {
    let filter = format!(
        "{{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: X-Header-Set, value: {mark}}}]}}}}"
    );
    let spec = format!("parentRefs: [{parent}], rules: [{{filters: [{filter}], backendRefs: [{backend}]}}]");
    route("HTTPRoute", namespace, name, &spec)
}
