//! Sends spans to the collector: OTLP over HTTP (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>), protobuf, in
//! plaintext, a connection for each batch. Runs beside the data path; a collector that is away costs spans alone.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::queue::Queue;
use super::{Span, otlp};

/// How long a span waits for others.
const EVERY: Duration = Duration::from_secs(1);
/// What a batch may hold: within the 4 MiB that collectors take.
const BATCH: usize = 2048;
/// How long a collector may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a batch is tried, and how long is waited after the first failure; doubled each time.
const TRIES: u32 = 5;
const WAIT: Duration = Duration::from_secs(1);
/// What is left when the agent ends may take so long.
const LAST: Duration = Duration::from_secs(2);
/// What OTLP/HTTP listens on unless told otherwise.
const PORT: u16 = 4318;

/// A collector's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    path: String,
}

impl Endpoint {
    /// `http://HOST[:PORT][/PATH]`, a base for `v1/traces` as `OTEL_EXPORTER_OTLP_ENDPOINT` is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let uri: http::Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err("TLS is not spoken here: name a collector of the node by http://".to_owned()),
            _ => return Err("expected http://HOST[:PORT]".to_owned()),
        }
        if uri.query().is_some() {
            return Err("a query has no meaning here".to_owned());
        }
        let host = uri.host().unwrap_or_default().to_owned();
        let path = format!("{}/v1/traces", uri.path().trim_end_matches('/'));
        Ok(Self { host, port: uri.port_u16().unwrap_or(PORT), path })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    /// The network's, or the collector's: it may be tried again.
    #[error("{0}")]
    Away(String),
    /// Ours: no other attempt will do better.
    #[error("it answers {0}")]
    Rejected(StatusCode),
}

/// Sends what comes into `queue` until it is closed.
pub(in crate::telemetry) async fn run(queue: Arc<Queue>, endpoint: Endpoint, node: String) {
    let mut complained = false;
    loop {
        // Woken early by a full queue or by the end.
        let _ = timeout(EVERY, queue.woken()).await;
        let last = queue.is_closed();
        let deadline = last.then(|| Instant::now() + LAST);
        for batch in queue.take().chunks(BATCH) {
            let sent = send(&endpoint, &node, batch, deadline).await;
            let counter = match &sent {
                Ok(()) => &queue.exported,
                Err(ExportError::Away(_)) => &queue.unreachable,
                Err(ExportError::Rejected(_)) => &queue.rejected,
            };
            counter.fetch_add(batch.len() as u64, Relaxed);
            match (sent, complained) {
                (Ok(()), true) => tracing::info!(%endpoint, "the collector takes spans again"),
                (Err(error), false) => tracing::warn!(%endpoint, %error, "the collector does not take spans"),
                (Ok(()), false) | (Err(_), true) => continue,
            }
            complained = !complained;
        }
        if last {
            return;
        }
    }
}

/// Tries until the batch is taken, is refused for good, or has been tried often enough.
async fn send(endpoint: &Endpoint, node: &str, batch: &[Span], deadline: Option<Instant>) -> Result<(), ExportError> {
    let message = Bytes::from(otlp::encode(node, batch));
    let mut wait = WAIT;
    for attempt in 1.. {
        let until = Instant::now() + PATIENCE;
        let sent = timeout_at(deadline.map_or(until, |last| last.min(until)), post(endpoint, message.clone())).await;
        match sent.unwrap_or_else(|_| Err(ExportError::Away("no answer in time".to_owned()))) {
            Err(ExportError::Away(_)) if attempt < TRIES && deadline.is_none() => sleep(wait).await,
            result => return result,
        }
        wait = wait.saturating_mul(2);
    }
    Ok(())
}

/// One request on a connection of its own.
async fn post(endpoint: &Endpoint, message: Bytes) -> Result<(), ExportError> {
    let away = |error: &dyn fmt::Display| ExportError::Away(error.to_string());
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, endpoint.port)).await.map_err(|error| away(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| away(&error))?;
    let request = Request::post(&endpoint.path)
        .header(HOST, format!("{}:{}", endpoint.host, endpoint.port))
        .header(CONTENT_TYPE, "application/x-protobuf")
        .body(http_body_util::Full::new(message))
        .map_err(|error| away(&error))?;
    // Ends with the sender.
    tokio::spawn(connection);
    let response = sender.send_request(request).await;
    match response.map_err(|error| away(&error))?.status() {
        status if status.is_success() => Ok(()),
        // Those that the specification names as worth another attempt.
        status @ (StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT) => Err(away(&status)),
        status => Err(ExportError::Rejected(status)),
    }
}
