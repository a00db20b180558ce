//! A collector: takes spans by OTLP over HTTP and reads them with the protocol's own generated types.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mesh_tests::netns::Netns;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message;
use tokio::sync::oneshot;

/// A span as it came, with what its resource says of itself.
#[derive(Clone, Debug)]
pub struct Span {
    pub trace: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    pub kind: i32,
    pub failed: bool,
    pub start_ns: u64,
    pub end_ns: u64,
    pub resource: HashMap<String, String>,
    pub attributes: HashMap<String, String>,
}

impl Span {
    /// The value of an attribute; empty when it has none.
    pub fn says(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

type Spans = Arc<Mutex<Vec<Span>>>;

/// Serves until it is dropped.
pub struct Collector {
    spans: Spans,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Collector {
    /// Listens on `address` in `netns`.
    pub fn start(netns: &Netns, address: SocketAddr) -> Result<Self> {
        let listener = netns.run(|| std::net::TcpListener::bind(address))?;
        let listener = listener.with_context(|| format!("{address} in {}", netns.name()))?;
        listener.set_nonblocking(true)?;
        let spans = Spans::default();
        let (stop, stopped) = oneshot::channel();
        let theirs = Arc::clone(&spans);
        let thread = std::thread::spawn(move || serve(listener, &theirs, stopped));
        Ok(Self { spans, stop: Some(stop), thread: Some(thread) })
    }

    /// What has come so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A collector that panicked has failed its test by the spans it lacks.
            let _ = thread.join();
        }
    }
}

fn serve(listener: std::net::TcpListener, spans: &Spans, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        tokio::select! {
            _ = stopped => {}
            () = accept(listener, spans) => {}
        }
    });
}

async fn accept(listener: tokio::net::TcpListener, spans: &Spans) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let spans = Arc::clone(spans);
        tokio::spawn(async move {
            let service = service_fn(|request| take(request, &spans));
            let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // An agent that is killed ends it as it likes.
            let _ = served.await;
        });
    }
}

async fn take(request: Request<Incoming>, spans: &Spans) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    match read(request).await {
        Ok(more) => {
            spans.lock().unwrap_or_else(PoisonError::into_inner).extend(more);
            *response.body_mut() = Full::from(ExportTraceServiceResponse::default().encode_to_vec());
        }
        Err(error) => {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            *response.body_mut() = Full::from(format!("{error:#}"));
        }
    }
    Ok(response)
}

async fn read(request: Request<Incoming>) -> Result<Vec<Span>> {
    ensure!(request.uri().path() == "/v1/traces", "{}", request.uri());
    let kind = request.headers().get("content-type").context("no content type")?;
    ensure!(kind == "application/x-protobuf", "{kind:?}");
    let body = request.into_body().collect().await?.to_bytes();
    let export = ExportTraceServiceRequest::decode(body)?;
    let mut spans = Vec::new();
    for of_resource in export.resource_spans {
        let resource = said(&of_resource.resource.context("no resource")?.attributes);
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Span {
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                name: span.name,
                kind: span.kind,
                failed: span.status.is_some_and(|status| status.code == 2),
                start_ns: span.start_time_unix_nano,
                end_ns: span.end_time_unix_nano,
                resource: resource.clone(),
                attributes: said(&span.attributes),
            });
        }
    }
    Ok(spans)
}

fn said(attributes: &[KeyValue]) -> HashMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |pair: &KeyValue| pair.value.as_ref().and_then(|value| value.value.as_ref()).map(text);
    attributes.iter().map(|pair| (pair.key.clone(), value(pair).unwrap_or_default())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
