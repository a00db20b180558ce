//! The unix socket for the node's operator: one connection, one JSON document.
//!
//! The file is made 0600 under a restrictive name first and renamed, so that nobody can connect to it before its
//! mode is right.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::AdminError;
use super::status::Status;

/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// An answer takes microseconds; a reader that does not read is cut off.
const DEADLINE: Duration = Duration::from_secs(5);
/// More than any node's status.
const LARGEST: u64 = 64 * 1024 * 1024;

/// Serves `status` until the task is dropped.
///
/// # Errors
/// When the socket cannot be made in `state_dir`.
pub fn serve<S: Fn() -> Status + Send + Sync + 'static>(
    state_dir: &Path,
    status: S,
) -> Result<impl Future<Output = ()> + use<S>, AdminError> {
    Ok(accept(listen(state_dir, SOCKET_NAME)?, Arc::new(status)))
}

/// A unix socket `name` in `state_dir` that only this user may connect to. Takes the place of the one that is
/// there: an agent that is gone leaves its file behind, and a successor takes its predecessor's over.
///
/// # Errors
/// When the socket cannot be made.
pub fn listen(state_dir: &Path, name: &str) -> Result<UnixListener, AdminError> {
    let path = state_dir.join(name);
    let fail = |source| AdminError::Socket { path: path.clone(), source };
    let making = state_dir.join(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_file(&making);
    let listener = UnixListener::bind(&making).map_err(fail)?;
    fs::set_permissions(&making, fs::Permissions::from_mode(0o600)).map_err(fail)?;
    fs::rename(&making, &path).map_err(fail)?;
    Ok(listener)
}

async fn accept(listener: UnixListener, status: Arc<impl Fn() -> Status + Send + Sync + 'static>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let status = Arc::clone(&status);
                tokio::spawn(async move {
                    // A reader that hangs up is no news.
                    let _ = tokio::time::timeout(DEADLINE, answer(stream, &status())).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the status socket could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, status: &Status) -> std::io::Result<()> {
    let document = serde_json::to_vec(status).map_err(std::io::Error::other)?;
    stream.write_all(&document).await?;
    stream.shutdown().await
}

/// Asks the agent whose state directory this is.
///
/// # Errors
/// When no agent answers, or not in this version's words.
pub async fn fetch(state_dir: &Path) -> Result<Status, AdminError> {
    let path: PathBuf = state_dir.join(SOCKET_NAME);
    let fail = |source| AdminError::Socket { path: path.clone(), source };
    let stream = UnixStream::connect(&path).await.map_err(fail)?;
    let mut document = Vec::new();
    let mut stream = stream.take(LARGEST);
    let read = stream.read_to_end(&mut document);
    tokio::time::timeout(DEADLINE, read).await.map_err(|e| fail(e.into()))?.map_err(fail)?;
    serde_json::from_slice(&document).map_err(|e| AdminError::Answer { path: path.clone(), reason: e.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_status_goes_over_a_socket_that_only_its_owner_may_open() {
        let dir = tempfile::tempdir().unwrap();
        let status = Status { node: "a".into(), ..Status::default() };
        let expected = status.clone();
        tokio::spawn(serve(dir.path(), move || status.clone()).unwrap());
        assert_eq!(fetch(dir.path()).await.unwrap(), expected);
        let mode = fs::metadata(dir.path().join(SOCKET_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn no_agent_is_an_error_that_names_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let error = fetch(dir.path()).await.unwrap_err().to_string();
        assert!(error.contains(SOCKET_NAME), "{error}");
    }
}
