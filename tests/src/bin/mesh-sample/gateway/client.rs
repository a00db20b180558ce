//! The client: asks once or several times and prints each answer, line by line.
//!
//! ```text
//! [0] Url=http://echo/path
//! [0] StatusCode=200
//! [0] ResponseHeader=name:value
//! [0 body] Hostname=echo-v1-abc12-x1y2z
//! ```
//! Names are not resolved: `--to` says where to connect, the URL what to ask for. Redirects are not followed.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use http::header::{CONNECTION, CONTENT_TYPE, HOST, TE, UPGRADE};
use http::uri::Uri;
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{GRPC_METHOD, message, run};
use crate::options::Options;

/// An answer that does not come within this does not come.
const WITHIN: Duration = Duration::from_secs(10);
/// What is sent where only an answer matters.
const HELLO: &str = "hello\n";

/// What is asked, and where.
struct Question {
    url: Uri,
    to: SocketAddr,
    method: String,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Replaces the URL's; never where the connection goes.
    authority: String,
}

/// A connection over which requests are sent.
enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Asks `--count` times: on one connection with `--keep-alive true`, else on one for each.
pub fn ask(options: &Options) -> Result<()> {
    let question = Question::read(options)?;
    let count: usize = options.or("count", 1)?;
    let keep_alive: bool = options.or("keep-alive", false)?;
    run(async {
        let mut kept = None;
        for number in 0..count {
            let answer = timeout(WITHIN, question.ask(number, &mut kept)).await;
            match answer.unwrap_or_else(|_| bail!("no answer within {WITHIN:?}")) {
                Ok(text) => print!("{text}"),
                Err(error) => {
                    kept = None;
                    println!("[{number}] Error={error:#}");
                }
            }
            if !keep_alive {
                kept = None;
            }
        }
        Ok(())
    })
}

impl Question {
    fn read(options: &Options) -> Result<Self> {
        let url: String = options.required("url")?;
        let url: Uri = url.parse().with_context(|| format!("`{url}` is no URL"))?;
        let authority = url.authority().with_context(|| format!("`{url}` names no host"))?.to_string();
        let mut question = Self {
            to: options.target()?,
            method: options.or("method", "GET".to_owned())?,
            headers: Vec::new(),
            authority,
            url,
        };
        for header in options.all("header") {
            let (name, value) = header.split_once(':').with_context(|| format!("-H {header}: no colon"))?;
            let (name, value): (HeaderName, _) = (name.trim().parse()?, value.trim());
            if name == HOST {
                question.authority = value.to_owned();
            } else {
                question.headers.push((name, value.parse()?));
            }
        }
        Ok(question)
    }

    fn scheme(&self) -> &str {
        self.url.scheme_str().unwrap_or_default()
    }

    async fn ask(&self, number: usize, kept: &mut Option<Connection>) -> Result<String> {
        let mut text = format!("[{number}] Url={}\n", self.url);
        match self.scheme() {
            "tcp" => self.say(number, &mut text).await?,
            "upgrade" => self.upgrade(number, &mut text).await?,
            "http" | "h2c" | "grpc" => {
                let mut connection = match kept.take() {
                    Some(connection) => connection,
                    None => self.connect().await?,
                };
                let response = match &mut connection {
                    Connection::Http1(sender) => sender.send_request(self.request(false)?).await?,
                    Connection::Http2(sender) => sender.send_request(self.request(true)?).await?,
                };
                self.tell(number, response, &mut text).await?;
                // Kept unless the server wants no more requests on it.
                let ready = match &mut connection {
                    Connection::Http1(sender) => sender.ready().await,
                    Connection::Http2(sender) => sender.ready().await,
                };
                *kept = ready.ok().map(|()| connection);
            }
            other => bail!("no scheme `{other}`"),
        }
        Ok(text)
    }

    async fn dial(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.to).await.with_context(|| format!("cannot connect to {}", self.to))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn connect(&self) -> Result<Connection> {
        let io = TokioIo::new(self.dial().await?);
        if self.scheme() == "http" {
            let (sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection.with_upgrades());
            return Ok(Connection::Http1(sender));
        }
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(connection);
        Ok(Connection::Http2(sender))
    }

    /// The request; HTTP/2 carries the authority in the URI.
    fn request(&self, is_http2: bool) -> Result<Request<Full<Bytes>>> {
        let is_grpc = self.scheme() == "grpc";
        let target = self.url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let target = if is_grpc && target == "/" { GRPC_METHOD } else { target };
        let mut request = Request::builder().method(if is_grpc { "POST" } else { self.method.as_str() });
        request = if is_http2 {
            request.uri(format!("http://{}{target}", self.authority))
        } else {
            request.uri(target).header(HOST, &self.authority)
        };
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        if is_grpc {
            request = request.header(CONTENT_TYPE, "application/grpc").header(TE, "trailers");
            return Ok(request.body(Full::from(message::encode(HELLO)))?);
        }
        Ok(request.body(Full::default())?)
    }

    async fn tell(&self, number: usize, response: Response<Incoming>, text: &mut String) -> Result<()> {
        let (head, body) = response.into_parts();
        writeln!(text, "[{number}] StatusCode={}\n[{number}] Proto={:?}", head.status.as_u16(), head.version)?;
        for (name, value) in &head.headers {
            writeln!(text, "[{number}] ResponseHeader={name}:{}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        let body = body.collect().await.context("the body is cut off")?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let body = body.to_bytes();
        if self.scheme() == "grpc" {
            let status = trailers.get("grpc-status").or_else(|| head.headers.get("grpc-status"));
            let status = status.and_then(|status| status.to_str().ok()).context("no grpc-status")?;
            writeln!(text, "[{number}] GrpcStatus={status}")?;
            return if body.is_empty() { Ok(()) } else { lines(number, &message::decode(&body)?, text) };
        }
        lines(number, &String::from_utf8_lossy(&body), text)
    }

    /// A line of text over plain TCP.
    async fn say(&self, number: usize, text: &mut String) -> Result<()> {
        let mut stream = self.dial().await?;
        stream.write_all(HELLO.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(!answer.is_empty(), "the connection ended without a byte");
        writeln!(text, "[{number}] StatusCode=200")?;
        lines(number, &answer, text)
    }

    /// Leaves HTTP for a protocol that sends everything back.
    async fn upgrade(&self, number: usize, text: &mut String) -> Result<()> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.dial().await?)).await?;
        tokio::spawn(connection.with_upgrades());
        let mut request = self.request(false)?;
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
        let response = sender.send_request(request).await?;
        writeln!(text, "[{number}] StatusCode={}", response.status().as_u16())?;
        for (name, value) in response.headers() {
            writeln!(text, "[{number}] ResponseHeader={name}:{}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await?);
        stream.write_all(HELLO.as_bytes()).await?;
        let mut back = [0; HELLO.len()];
        stream.read_exact(&mut back).await.context("nothing comes back after the upgrade")?;
        writeln!(text, "[{number} body] Echo={}", String::from_utf8_lossy(&back).trim_end())?;
        Ok(())
    }
}

fn lines(number: usize, body: &str, text: &mut String) -> Result<()> {
    for line in body.lines() {
        writeln!(text, "[{number} body] {line}")?;
    }
    Ok(())
}
