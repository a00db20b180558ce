//! The unix socket for the node's operator: one connection, one request, one JSON document.
//!
//! The file is made 0600 under a restrictive name first and renamed, so that nobody can connect to it before its
//! mode is right.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::AdminError;
use super::request::Request;

/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "admin.sock";
/// An answer takes milliseconds; a client that does not write or does not read is cut off.
const DEADLINE: Duration = Duration::from_secs(5);
/// More than any node's status.
const LARGEST: u64 = 64 * 1024 * 1024;
/// More than any request.
const LARGEST_REQUEST: u64 = 16 * 1024;

/// Serves what `answer` makes of each request, as JSON, until the task is dropped. `answer` may take a while, and must
/// not block.
///
/// # Errors
/// When the socket cannot be made in `state_dir`.
pub fn serve<A, F>(state_dir: &Path, answer: A) -> Result<impl Future<Output = ()> + use<A, F>, AdminError>
where
    A: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = serde_json::Result<Vec<u8>>> + Send + 'static,
{
    Ok(accept(listen(state_dir, SOCKET_NAME)?, Arc::new(answer)))
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

async fn accept<A, F>(listener: UnixListener, answer: Arc<A>)
where
    A: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = serde_json::Result<Vec<u8>>> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    // A client that hangs up, or asks nothing that we know, is no news: it reads an end without answer.
                    let _ = tokio::time::timeout(DEADLINE, converse(stream, answer)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin socket could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse<A, F>(mut stream: UnixStream, answer: Arc<A>) -> std::io::Result<()>
where
    A: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = serde_json::Result<Vec<u8>>> + Send + 'static,
{
    let mut request = Vec::new();
    (&mut stream).take(LARGEST_REQUEST).read_to_end(&mut request).await?;
    let document = answer(serde_json::from_slice(&request)?).await?;
    stream.write_all(&document).await?;
    stream.shutdown().await
}

/// Asks the agent whose state directory this is.
///
/// # Errors
/// When no agent answers, or not in this version's words.
pub async fn ask<T: DeserializeOwned>(state_dir: &Path, request: &Request) -> Result<T, AdminError> {
    let path: PathBuf = state_dir.join(SOCKET_NAME);
    let fail = |source| AdminError::Socket { path: path.clone(), source };
    let unread = |e: serde_json::Error| AdminError::Answer { path: path.clone(), reason: e.to_string() };
    let request = serde_json::to_vec(request).map_err(unread)?;
    let asked = async {
        let mut stream = UnixStream::connect(&path).await?;
        stream.write_all(&request).await?;
        stream.shutdown().await?;
        let mut document = Vec::new();
        stream.take(LARGEST).read_to_end(&mut document).await?;
        Ok(document)
    };
    let document = tokio::time::timeout(DEADLINE, asked).await.map_err(|e| fail(e.into()))?.map_err(fail)?;
    serde_json::from_slice(&document).map_err(unread)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::request::ExplainRequest;

    #[tokio::test]
    async fn each_request_is_answered_over_a_socket_that_only_its_owner_may_open() {
        let dir = tempfile::tempdir().unwrap();
        tokio::spawn(serve(dir.path(), async |request| serde_json::to_vec(&(request, "heard"))).unwrap());
        let explain = ExplainRequest { source: "a/b".into(), destination: "c/d".into(), port: Some(80), request: None };
        for request in [Request::Status, Request::Explain(explain)] {
            let answer: (Request, String) = ask(dir.path(), &request).await.unwrap();
            assert_eq!(answer, (request, "heard".to_owned()));
        }
        let mode = fs::metadata(dir.path().join(SOCKET_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_is_no_request_gets_an_end_and_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        tokio::spawn(serve(dir.path(), async |request| serde_json::to_vec(&request)).unwrap());
        let mut stream = UnixStream::connect(dir.path().join(SOCKET_NAME)).await.unwrap();
        stream.write_all(b"{\"ask\":\"nonsense\"}").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "");
    }

    #[tokio::test]
    async fn no_agent_is_an_error_that_names_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let error = ask::<()>(dir.path(), &Request::Status).await.unwrap_err().to_string();
        assert!(error.contains(SOCKET_NAME), "{error}");
    }
}
