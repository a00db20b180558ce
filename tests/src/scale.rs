//! How much of a test runs: enough to prove it on every change, or as much as is promised (`--long`).

/// Set by `cargo xtask test --long`.
const LONG: &str = "MESH_TEST_LONG";

/// `long` in a long run, else `short`.
#[must_use]
pub fn pick<T>(short: T, long: T) -> T {
    if std::env::var_os(LONG).is_some() { long } else { short }
}
