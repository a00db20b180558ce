//! The server: answers every request with what it got and who it is, and prints a line of JSON for each.

use std::convert::Infallible;
use std::future::pending;
use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use http::header::{CONTENT_TYPE, HOST, HeaderName, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::knobs::{Knobs, Turns};
use super::{GRPC_METHOD, message, run};
use crate::options::Options;
use crate::servers::{canonical, listen, print_line};

/// The first bytes of an HTTP/2 connection; three of them are no method of HTTP/1.1 with a space.
const PREFACE: &[u8] = b"PRI";

type Body = BoxBody<Bytes, Infallible>;

/// Who the server is.
struct Identity {
    hostname: String,
    namespace: String,
    version: String,
    turns: Turns,
}

/// One connection's ends.
#[derive(Clone, Copy)]
struct Ends {
    port: u16,
    peer: SocketAddr,
}

/// Serves for ever: HTTP/1.1 and HTTP/2 on each `--port` and `--grpc`, lines on each `--tcp`. A port that is named by
/// `--tls` too is left closed: no case dials it.
pub fn serve(options: &Options) -> Result<()> {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let identity = Arc::new(Identity {
        hostname: variable("HOSTNAME"),
        namespace: variable("NAMESPACE"),
        version: variable("SERVICE_VERSION"),
        turns: Turns::default(),
    });
    run(async {
        for port in ports(options, "tcp")? {
            tokio::spawn(accept(tokio_listener(port)?, port, Arc::clone(&identity), line));
        }
        let tls = ports(options, "tls")?;
        for port in ports(options, "grpc")?.into_iter().chain(ports(options, "port")?) {
            if !tls.contains(&port) {
                tokio::spawn(accept(tokio_listener(port)?, port, Arc::clone(&identity), requests));
            }
        }
        pending().await
    })
}

fn ports(options: &Options, name: &str) -> Result<Vec<u16>> {
    options.all(name).map(|port| port.parse().with_context(|| format!("--{name}={port}"))).collect()
}

fn tokio_listener(port: u16) -> Result<TcpListener> {
    let listener = listen(port)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).context("no listener")
}

async fn accept<F: Future<Output = Result<()>> + Send + 'static>(
    listener: TcpListener,
    port: u16,
    identity: Arc<Identity>,
    serve: fn(TcpStream, Ends, Arc<Identity>) -> F,
) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let served = serve(stream, Ends { port, peer: canonical(peer) }, Arc::clone(&identity));
        tokio::spawn(async move {
            if let Err(error) = served.await {
                print_line(&json!({ "port": port, "error": format!("{error:#}") }));
            }
        });
    }
}

/// Answers a line of text with who it is.
async fn line(mut stream: TcpStream, ends: Ends, identity: Arc<Identity>) -> Result<()> {
    let mut first = [0; 1024];
    let length = stream.read(&mut first).await?;
    let said = String::from_utf8_lossy(first.get(..length).unwrap_or_default()).trim_end().to_owned();
    print_line(&json!({ "port": ends.port, "line": said }));
    let text = format!("StatusCode=200\n{}", identity.lines(ends));
    stream.write_all(text.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

/// Serves HTTP, of the version that the client begins with.
async fn requests(mut stream: TcpStream, ends: Ends, identity: Arc<Identity>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut first = Vec::with_capacity(PREFACE.len());
    while first.len() < PREFACE.len() && stream.read_buf(&mut first).await? > 0 {}
    let is_http2 = first.starts_with(PREFACE);
    let (reader, writer) = stream.into_split();
    let io = TokioIo::new(tokio::io::join(Cursor::new(first).chain(reader), writer));
    let service = service_fn(move |request| {
        let identity = Arc::clone(&identity);
        async move { Ok::<_, Infallible>(identity.answer(request, ends).await) }
    });
    if is_http2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await?;
    } else {
        let served = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        served.with_upgrades().await?;
    }
    Ok(())
}

impl Identity {
    async fn answer(&self, mut request: Request<Incoming>, ends: Ends) -> Response<Body> {
        let upgrade = request.headers().get(UPGRADE).cloned();
        if let (Some(protocol), Version::HTTP_11) = (&upgrade, request.version()) {
            return upgraded(&mut request, protocol);
        }
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
            return plain(StatusCode::BAD_REQUEST, "the body ended early\n".to_owned());
        };
        let target = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let knobs = match Knobs::parse(head.uri.query().unwrap_or_default()) {
            Ok(knobs) => knobs,
            Err(error) => return plain(StatusCode::BAD_REQUEST, format!("{error:#}\n")),
        };
        let status = self.turns.next(&target, &knobs);
        print_line(&json!({
            "port": ends.port, "method": head.method.as_str(), "target": target, "status": status,
            "bytes": body.len(),
        }));
        tokio::time::sleep(knobs.delay).await;
        if is_grpc(&head.headers) {
            return self.answer_grpc(&head, &body, ends);
        }
        let mut response =
            plain(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), self.tell(&head, ends));
        for (name, value) in &knobs.headers {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                response.headers_mut().append(name, value);
            }
        }
        response
    }

    /// gRPC: status 0 and one message, or `UNIMPLEMENTED` and none.
    fn answer_grpc(&self, head: &http::request::Parts, body: &[u8], ends: Ends) -> Response<Body> {
        let (frame, status) = match message::decode(body) {
            Ok(_) if head.uri.path() == GRPC_METHOD => (message::encode(&self.tell(head, ends)), "0"),
            _ => (Vec::new(), "12"),
        };
        let trailers =
            HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(status))]);
        let body = Full::new(Bytes::from(frame)).with_trailers(async { Some(Ok(trailers)) });
        let mut response = Response::new(body.boxed());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response
    }

    fn lines(&self, ends: Ends) -> String {
        let Self { hostname, namespace, version, .. } = self;
        let Ends { port, peer } = ends;
        format!(
            "ServiceVersion={version}\nServicePort={port}\nCluster=\nIP={}\nHostname={hostname}\n\
             Namespace={namespace}\n",
            peer.ip()
        )
    }

    /// Everything about a request, a fact to a line.
    fn tell(&self, head: &http::request::Parts, ends: Ends) -> String {
        let authority = head.uri.authority().map(http::uri::Authority::as_str);
        let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
        let target = head.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
        let mut text = format!(
            "Host={}\nURL={target}\nMethod={}\nProto={:?}\nAlpn=\n{}",
            authority.or(host).unwrap_or_default(),
            head.method,
            head.version,
            self.lines(ends)
        );
        for (name, value) in &head.headers {
            text.push_str(&format!("RequestHeader={name}:{}\n", String::from_utf8_lossy(value.as_bytes())));
        }
        text
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// Takes any protocol that is asked for, and sends back what it then gets.
fn upgraded(request: &mut Request<Incoming>, protocol: &HeaderValue) -> Response<Body> {
    let upgrade = hyper::upgrade::on(request);
    print_line(&json!({ "upgrade": String::from_utf8_lossy(protocol.as_bytes()) }));
    tokio::spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        let (mut reader, mut writer) = tokio::io::split(TokioIo::new(stream));
        // Whoever goes away ends it.
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    });
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, String::new());
    response.headers_mut().remove(CONTENT_TYPE);
    response.headers_mut().insert(UPGRADE, protocol.clone());
    response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
    response
}
