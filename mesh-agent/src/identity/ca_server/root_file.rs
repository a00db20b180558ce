//! `<state dir>/root.pem`: the roots to trust, for the agents' `--ca-root`. No secret.

use std::path::Path;

use rustls::pki_types::CertificateDer;

use super::super::error::CertError;
use super::super::state;

/// Name of the file in the state directory.
pub const ROOT_FILE: &str = "root.pem";

/// Writes it, in one step.
pub(super) fn write(state_dir: &Path, roots: &[CertificateDer<'_>]) -> Result<(), CertError> {
    state::write_public(&state_dir.join(ROOT_FILE), text(roots).as_bytes())
}

/// The roots, PEM.
pub(super) fn text(roots: &[CertificateDer<'_>]) -> String {
    roots.iter().map(|root| state::pem("CERTIFICATE", root).to_string()).collect()
}

/// The roots that the CA of `state_dir` wants trusted, PEM.
///
/// # Errors
/// [`CertError::StateDir`] when no CA has run there yet.
pub fn roots_pem(state_dir: &Path) -> Result<String, CertError> {
    let file = state_dir.join(ROOT_FILE);
    let missing = || CertError::state(&file, "is missing", "start `mesh-agent ca` with this --state-dir first");
    let pem = state::read_public(&file)?.ok_or_else(missing)?;
    Ok(String::from_utf8_lossy(&pem).into_owned())
}
