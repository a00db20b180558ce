//! HBONE: TCP in the streams of an HTTP/2 connection, as Istio's ztunnel speaks it (design §3).
//!
//! Each stream is a CONNECT (RFC 9113 §8.5) without `:scheme` and `:path` whose `:authority` is the IP and port
//! of the TCP destination. End of data is END_STREAM and only that; a failure is RST_STREAM(CONNECT_ERROR), and
//! every RST_STREAM received is a failure. `forwarded`, `baggage` and `traceparent` are labels: sent, never
//! believed.

use std::net::{IpAddr, SocketAddr};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::copy::Side;
use super::failure::Failure;
use crate::model::addr::EndpointAddr;
use crate::model::outcome::Outcome;
use crate::model::workload::Workload;

/// ALPN of HBONE.
pub(super) const ALPN: &[u8] = b"h2";
/// Says in a word why the agent refused; the same word as in log and metric.
pub(super) const REASON_HEADER: &str = "x-mesh-agent-reason";

/// Per stream: 10 Gb/s over 3 ms of round trip, without waiting for a window.
const STREAM_WINDOW: u32 = 4 << 20;
/// Per connection: four such streams at once.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest frame we take. A frame is held whole until it is passed on, so this bounds that.
const MAX_FRAME: u32 = 1 << 20;
/// Heads are small (a few hundred bytes), but a peer's trace baggage may not be.
const MAX_HEADERS: u32 = 32 << 10;
/// What we advertise. Every HBONE client must get at least 100.
const MAX_STREAMS: u32 = 256;
/// What a stream may hold unsent, and so the largest piece handed to it at once: one full scratch buffer.
const SEND_BUFFER: usize = 256 << 10;
/// What unread small frames may cost a connection. The library's default (half a window) is reached by 32,000
/// unread one-byte frames and then ends the connection with all its streams; this by 256,000.
const SMALL_FRAMES: usize = 64 << 20;

/// Settings of the side that dials.
pub(super) fn client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .enable_push(false);
    builder
}

/// Settings of the side that accepts.
pub(super) fn server() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .max_concurrent_streams(MAX_STREAMS);
    builder
}

/// The head of a request for a stream to `target` on behalf of `client` at `client_addr`.
pub(super) fn request(target: EndpointAddr, client: &Workload, client_addr: SocketAddr) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    // An address and port always form a valid authority.
    *request.uri_mut() = target.to_string().parse::<Uri>().unwrap_or_default();
    let labels = [
        ("forwarded", forwarded(client_addr)),
        ("baggage", baggage(client)),
        ("traceparent", traceparent(rand::random(), rand::random())),
    ];
    for (name, value) in labels {
        // A name that is no header value is left out: labels decide nothing.
        if let Ok(value) = HeaderValue::try_from(value) {
            request.headers_mut().insert(name, value);
        }
    }
    request
}

/// RFC 7239 §6: an IPv6 address is bracketed, and quoted for the brackets and the colon.
fn forwarded(client: SocketAddr) -> String {
    match client {
        SocketAddr::V4(_) => format!("for={}", client.ip()),
        SocketAddr::V6(_) => format!("for=\"[{}]\"", client.ip()),
    }
}

/// W3C baggage with the keys that ztunnel sends. Kubernetes names need no percent-encoding.
fn baggage(client: &Workload) -> String {
    format!("k8s.namespace.name={},k8s.pod.name={},service.name={}", client.namespace, client.name, client.app)
}

/// W3C trace context, not sampled: ids that join the two agents' records of one connection.
fn traceparent(trace: u128, span: u64) -> String {
    // All-zero ids are invalid (§3.2.2.3, §3.2.2.4).
    format!("00-{:032x}-{:016x}-00", trace.max(1), span.max(1))
}

/// The TCP destination that a request asks for.
///
/// # Errors
/// What is wrong with the head; names come from the peer and are not repeated.
pub(super) fn target(request: &Request<RecvStream>) -> Result<SocketAddr, Failure> {
    if request.method() != Method::CONNECT || request.extensions().get::<h2::ext::Protocol>().is_some() {
        return Err(Failure::BadTarget("not_a_connect"));
    }
    let authority = request.uri().authority().ok_or(Failure::BadTarget("no_authority"))?;
    parse_authority(authority.as_str()).ok_or(Failure::BadTarget("not_an_address"))
}

fn parse_authority(authority: &str) -> Option<SocketAddr> {
    let target: SocketAddr = authority.parse().ok()?;
    // A scope id means nothing on another node, and port 0 nothing at all.
    let scoped = matches!(target, SocketAddr::V6(v6) if v6.scope_id() != 0);
    (!scoped && target.port() != 0).then(|| crate::model::addr::canonical(target))
}

/// The answer to a request: 200 only after the application's connection stands.
pub(super) fn answer(refused: Option<&Failure>) -> Response<()> {
    let mut response = Response::new(());
    if let Some(failure) = refused {
        let outcome = failure.outcome();
        *response.status_mut() = match outcome {
            Outcome::BadTarget => StatusCode::BAD_REQUEST,
            Outcome::Denied | Outcome::Revoked | Outcome::PlaintextRefused => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        response.headers_mut().insert(REASON_HEADER, HeaderValue::from_static(outcome.as_str()));
    }
    response
}

/// What a peer's answer means for the connection that asked.
pub(super) fn verdict(status: StatusCode, headers: &HeaderMap, by: SocketAddr) -> Result<(), Failure> {
    if status == StatusCode::OK {
        return Ok(());
    }
    // Only words that a refusal can have: a peer cannot make us say anything else.
    const WORDS: [Outcome; 8] = [
        Outcome::BadTarget,
        Outcome::Denied,
        Outcome::PlaintextRefused,
        Outcome::ConnectRefused,
        Outcome::ConnectTimeout,
        Outcome::ConnectUnreachable,
        Outcome::Overloaded,
        Outcome::AgentDrained,
    ];
    let word = headers.get(REASON_HEADER).and_then(|value| value.to_str().ok());
    let outcome = WORDS.into_iter().find(|outcome| Some(outcome.as_str()) == word).unwrap_or(match status {
        StatusCode::BAD_REQUEST => Outcome::BadTarget,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Outcome::Denied,
        StatusCode::SERVICE_UNAVAILABLE => Outcome::ConnectRefused,
        _ => Outcome::TunnelFailed,
    });
    Err(Failure::RefusedByPeer { by, outcome })
}

/// What an HTTP/2 error of a stream means.
pub(super) fn broken(error: &h2::Error, with: SocketAddr) -> Failure {
    if error.is_reset() && error.is_remote() {
        Failure::Reset("peer of the tunnel")
    } else {
        Failure::Tunnel { with, reason: error.to_string() }
    }
}

/// One stream as a side of a copy.
#[derive(Debug)]
pub(super) struct H2Side {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received and not yet consumed.
    chunk: Bytes,
    finished: bool,
    with: SocketAddr,
}

impl H2Side {
    /// `with` is the peer, for the reason in the log.
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream, with: SocketAddr) -> Self {
        Self { send, receive, chunk: Bytes::new(), finished: false, with }
    }

    /// Ends the stream as RFC 9113 §8.5 asks for a TCP connection that was reset.
    pub(super) fn reset(mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    fn broken(&self, error: &h2::Error) -> Failure {
        broken(error, self.with)
    }

    fn cut(&self) -> Failure {
        Failure::Tunnel { with: self.with, reason: "the stream ended without end of data".to_owned() }
    }
}

impl Side for H2Side {
    fn poll_fill(&mut self, cx: &mut Context<'_>, _scratch: &mut [u8]) -> Poll<Result<bool, Failure>> {
        while self.chunk.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => return Poll::Ready(Err(self.broken(&error))),
                None if self.receive.is_end_stream() => return Poll::Ready(Ok(false)),
                // Trailers, which no CONNECT stream may have (RFC 9113 §8.5).
                None => return Poll::Ready(Err(self.cut())),
            }
        }
        Poll::Ready(Ok(true))
    }

    fn filled<'a>(&'a self, _scratch: &'a [u8]) -> &'a [u8] {
        &self.chunk
    }

    fn consume(&mut self, count: usize) {
        self.chunk.advance(count.min(self.chunk.len()));
        // Fails only when the stream is gone, which the next read says.
        let _ = self.receive.flow_control().release_capacity(count);
    }

    fn keep(&mut self, _scratch: &[u8]) {}

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Failure>> {
        self.send.reserve_capacity(data.len().min(SEND_BUFFER));
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(self.broken(&error))),
                None => return Poll::Ready(Err(self.ended(cx))),
            }
        }
        let count = self.send.capacity().min(data.len());
        let piece = Bytes::copy_from_slice(data.get(..count).unwrap_or_default());
        let sent = self.send.send_data(piece, false);
        Poll::Ready(sent.map(|()| count).map_err(|error| self.broken(&error)))
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if !self.finished {
            if let Err(error) = self.send.send_data(Bytes::new(), true) {
                return Poll::Ready(Err(self.broken(&error)));
            }
            self.finished = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>, _scratch: &mut [u8]) -> Poll<Failure> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(_) => Poll::Ready(Failure::Reset("peer of the tunnel")),
            Err(error) => Poll::Ready(self.broken(&error)),
        }
    }
}

impl H2Side {
    /// Why a stream that takes no more data does not.
    fn ended(&mut self, cx: &mut Context<'_>) -> Failure {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(_)) => Failure::Reset("peer of the tunnel"),
            Poll::Ready(Err(error)) => self.broken(&error),
            Poll::Pending => self.cut(),
        }
    }
}

/// Whether `ip` and `port` of a request may be served by a pod with these addresses.
pub(super) fn serves(ips: &[IpAddr], refused_ports: &[u16], target: SocketAddr) -> Result<(), Failure> {
    if !ips.contains(&target.ip()) {
        return Err(Failure::BadTarget("foreign_address"));
    }
    if refused_ports.contains(&target.port()) {
        return Err(Failure::BadTarget("mesh_port"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_address_and_a_port_is_a_target() {
        for (authority, expected) in [
            ("10.0.0.1:80", Some("10.0.0.1:80")),
            ("[2001:db8::1]:443", Some("[2001:db8::1]:443")),
            ("[::ffff:10.0.0.1]:80", Some("10.0.0.1:80")),
            ("10.0.0.1:0", None),
            ("10.0.0.1", None),
            ("2001:db8::1:443", None),
            ("[fe80::1%2]:80", None),
            ("cart.shop:80", None),
            ("user@10.0.0.1:80", None),
            ("", None),
        ] {
            assert_eq!(parse_authority(authority), expected.map(|text| text.parse().unwrap()), "{authority}");
        }
    }

    #[test]
    fn every_refusal_keeps_its_word_over_the_wire() {
        let by: SocketAddr = ([127, 0, 0, 1], 15008).into();
        for outcome in [Outcome::BadTarget, Outcome::Denied, Outcome::ConnectTimeout, Outcome::Overloaded] {
            let (head, ()) = answer(Some(&Failure::RefusedByPeer { by, outcome })).into_parts();
            let failure = verdict(head.status, &head.headers, by).unwrap_err();
            assert_eq!(failure.outcome(), outcome);
        }
        assert!(verdict(answer(None).status(), &HeaderMap::new(), by).is_ok());
    }

    #[test]
    fn an_answer_without_our_word_means_what_hbone_says() {
        let by: SocketAddr = ([127, 0, 0, 1], 15008).into();
        for (status, word, outcome) in [
            (400, None, Outcome::BadTarget),
            (401, None, Outcome::Denied),
            (503, None, Outcome::ConnectRefused),
            (502, None, Outcome::TunnelFailed),
            (204, None, Outcome::TunnelFailed),
            (503, Some("ok"), Outcome::ConnectRefused),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(word) = word {
                headers.insert(REASON_HEADER, HeaderValue::from_static(word));
            }
            let failure = verdict(StatusCode::from_u16(status).unwrap(), &headers, by).unwrap_err();
            assert_eq!(failure.outcome(), outcome, "{status} {word:?}");
        }
    }

    #[test]
    fn labels_are_well_formed() {
        assert_eq!(forwarded("10.0.0.1:5".parse().unwrap()), "for=10.0.0.1");
        assert_eq!(forwarded("[2001:db8::1]:5".parse().unwrap()), "for=\"[2001:db8::1]\"");
        assert_eq!(traceparent(0, 0), "00-00000000000000000000000000000001-0000000000000001-00");
    }
}
