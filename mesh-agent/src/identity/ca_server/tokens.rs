//! One-time join tokens: what lets a new node in.
//!
//! A token is 256 random bits. On disk, `<state dir>/tokens/<SHA-256 of the token>` (0600) holds the node it
//! is for and its end; the token itself is nowhere. Redeeming it removes the file, which only one caller can.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::super::clock::Clock;
use super::super::error::CertError;
use super::super::node::NodeName;
use super::super::state;

/// Random bytes of a token.
const TOKEN_BYTES: usize = 32;
/// Longest life of a token.
pub const TOKEN_TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// The tokens of one CA. Any process with access to the state directory may make some.
#[derive(Debug)]
pub struct JoinTokens {
    dir: PathBuf,
    clock: Arc<dyn Clock>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    node: String,
    /// Seconds since 1970.
    expires: u64,
}

/// A token that was found good for a node, not yet spent.
#[derive(Debug)]
pub(super) struct GoodToken(PathBuf);

/// Why a token lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Never made, or already used.
    #[error("the join token is unknown or was used before")]
    Unknown,
    /// Too late.
    #[error("the join token has expired")]
    Expired,
    /// Good, but not for this node.
    #[error("the join token is for another node")]
    OtherNode,
    /// The CA cannot read its own file.
    #[error("the join token's record cannot be read")]
    Broken,
}

impl JoinTokens {
    /// The tokens under `<state_dir>/tokens`.
    ///
    /// # Errors
    /// [`CertError::StateDir`].
    pub fn open(state_dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, CertError> {
        state::state_dir(state_dir)?;
        let dir = state_dir.join("tokens");
        state::private_dir(&dir)?;
        let tokens = Self { dir, clock };
        tokens.remove_expired();
        Ok(tokens)
    }

    /// A new token for `node`, good once within `ttl` (at most [`TOKEN_TTL_MAX`]).
    ///
    /// # Errors
    /// [`CertError::StateDir`] when it cannot be recorded.
    pub fn create(&self, node: &NodeName, ttl: Duration) -> Result<Zeroizing<String>, CertError> {
        let mut bytes = Zeroizing::new([0u8; TOKEN_BYTES]);
        aws_lc_rs::rand::fill(&mut *bytes).map_err(|e| CertError::crypto("a join token", e))?;
        let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes));
        let expires = seconds(self.clock.now() + ttl.min(TOKEN_TTL_MAX));
        let record = serde_json::to_vec(&Record { node: node.as_str().to_owned(), expires })
            .map_err(|e| CertError::crypto("a token record", e))?;
        state::write_private(&self.file(&token), &record)?;
        Ok(token)
    }

    /// Whether `token` lets `node` in. Spends nothing.
    pub(super) fn check(&self, token: &str, node: &NodeName) -> Result<GoodToken, TokenError> {
        let file = self.file(token);
        let bytes = match state::read_private(&file) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Err(TokenError::Unknown),
            Err(error) => {
                tracing::error!(%error, "join token record refused");
                return Err(TokenError::Broken);
            }
        };
        let record: Record = serde_json::from_slice(&bytes).map_err(|_| TokenError::Broken)?;
        if record.expires <= seconds(self.clock.now()) {
            return Err(TokenError::Expired);
        }
        if record.node != node.as_str() {
            return Err(TokenError::OtherNode);
        }
        Ok(GoodToken(file))
    }

    /// Spends the token: of several callers with the same one, exactly one succeeds.
    pub(super) fn spend(&self, token: GoodToken) -> Result<(), TokenError> {
        match fs::remove_file(&token.0).and_then(|()| state::sync_dir(&self.dir)) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => Err(TokenError::Unknown),
            Err(error) => {
                tracing::error!(%error, "a spent join token cannot be removed");
                Err(TokenError::Broken)
            }
        }
    }

    fn file(&self, token: &str) -> PathBuf {
        let hash = digest::digest(&digest::SHA256, token.as_bytes());
        self.dir.join(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    }

    /// Housekeeping; what cannot be read is left for a person.
    fn remove_expired(&self) {
        let now = seconds(self.clock.now());
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let record = fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice::<Record>(&bytes).ok());
            if record.is_some_and(|record| record.expires <= now) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
