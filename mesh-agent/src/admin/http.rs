//! The HTTP/1.1 server of the network side: three paths, GET and HEAD, nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::AdminError;
use super::ready::Readiness;
use crate::telemetry::Registry;

/// Scrapers keep one connection each; a flood must not take the process's descriptors.
const CONNECTIONS: usize = 64;
/// A client that does not finish its request head in this time is cut off.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// OpenMetrics 1.0.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The older Prometheus text format, for scrapers that ask for it by name.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves until the task is dropped.
///
/// # Errors
/// When the address cannot be bound. Failing to accept is logged and tried again.
pub async fn serve(
    address: SocketAddr,
    registry: Arc<Registry>,
    ready: Arc<Readiness>,
) -> Result<impl Future<Output = ()>, AdminError> {
    let listener = TcpListener::bind(address).await.map_err(|source| AdminError::Metrics { address, source })?;
    Ok(accept(listener, registry, ready))
}

async fn accept(listener: TcpListener, registry: Arc<Registry>, ready: Arc<Readiness>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (registry, ready) = (Arc::clone(&registry), Arc::clone(&ready));
                tokio::spawn(async move {
                    connection(stream, registry, ready).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the metrics endpoint could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, registry: Arc<Registry>, ready: Arc<Readiness>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), accepts(&request), &registry, &ready);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    // A scraper that hangs up is no news.
    drop(served);
}

fn accepts(request: &Request<Incoming>) -> &str {
    request.headers().get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn answer(method: &Method, path: &str, accept: &str, registry: &Registry, ready: &Readiness) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".to_owned());
    }
    match path {
        "/metrics" => match registry.encode() {
            Ok(body) if accept.contains("text/plain") && !accept.contains("openmetrics") => {
                text(StatusCode::OK, PROMETHEUS, body)
            }
            Ok(body) => text(StatusCode::OK, OPENMETRICS, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
        },
        "/livez" => text(StatusCode::OK, "text/plain", "ok\n".to_owned()),
        "/readyz" => {
            let missing = ready.missing();
            let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let body = serde_json::json!({ "ready": missing.is_empty(), "missing": missing });
            text(status, "application/json", format!("{body}\n"))
        }
        _ => text(StatusCode::NOT_FOUND, "text/plain", "/metrics, /livez or /readyz\n".to_owned()),
    }
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Condition;

    #[test]
    fn each_path_has_its_answer() {
        let registry = Registry::default();
        let ready = Readiness::waiting(&[(Condition::Pods, "web is joining")]);
        let status = |path| answer(&Method::GET, path, "", &registry, &ready).status().as_u16();
        assert_eq!([status("/metrics"), status("/livez"), status("/readyz"), status("/x")], [200, 200, 503, 404]);
        ready.holds(Condition::Pods);
        assert_eq!(answer(&Method::GET, "/readyz", "", &registry, &ready).status(), StatusCode::OK);
        let posted = answer(&Method::POST, "/readyz", "", &registry, &ready);
        assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[test]
    fn the_older_text_format_is_served_to_who_asks_for_it_alone() {
        let registry = Registry::default();
        let ready = Readiness::waiting(&[]);
        let kind = |accept| {
            answer(&Method::GET, "/metrics", accept, &registry, &ready).headers()[CONTENT_TYPE]
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(kind(""), OPENMETRICS);
        assert_eq!(kind("text/plain;version=0.0.4"), PROMETHEUS);
        assert_eq!(kind("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"), OPENMETRICS);
    }
}
