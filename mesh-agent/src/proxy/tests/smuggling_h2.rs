//! What HTTP/2 can say and HTTP/1 cannot (RFC 9113 §8.2, §8.3, §10.3): a client writes the frames itself, and the
//! application reads what the lane judged, or nothing.

use std::net::SocketAddr;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::http::{no_admin, routed};
use super::recorder::{Heard, heard};
use super::rig::{Mesh, Pod, soon};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

type Fields = &'static [(&'static str, &'static str)];

/// One stream: its fields, what follows them, whether the application must see it, what the client is told.
struct Vector {
    name: &'static str,
    fields: Fields,
    body: Option<&'static str>,
    trailers: Fields,
    seen: Option<&'static str>,
    told: &'static str,
}

const fn vector(name: &'static str, fields: Fields, seen: Option<&'static str>, told: &'static str) -> Vector {
    Vector { name, fields, body: None, trailers: &[], seen, told }
}

const fn with_body(name: &'static str, fields: Fields, body: &'static str, seen: Option<&'static str>) -> Vector {
    let told = if seen.is_some() { "200" } else { MALFORMED };
    Vector { name, fields, body: Some(body), trailers: &[], seen, told }
}

const fn with_trailers(name: &'static str, trailers: Fields, seen: Option<&'static str>) -> Vector {
    Vector { trailers, ..with_body(name, POST, "abc", seen) }
}

/// A stream error of type PROTOCOL_ERROR (RFC 9113 §8.1.1).
const MALFORMED: &str = "reset 1";
/// A connection error of the same type.
const ENDED: &str = "gone 1";

const M: (&str, &str) = (":method", "GET");
const S: (&str, &str) = (":scheme", "http");
const A: (&str, &str) = (":authority", "a");
const P: (&str, &str) = (":path", "/a");
const POST: Fields = &[(":method", "POST"), S, A, P];
const SEEN: Option<&str> = Some("GET /a ");

const VECTORS: &[Vector] = &[
    vector("a request", &[M, S, A, P], SEEN, "200"),
    vector("te: trailers", &[M, S, A, P, ("te", "trailers")], SEEN, "200"),
    vector("te with another coding", &[M, S, A, P, ("te", "gzip")], None, MALFORMED),
    vector("connection", &[M, S, A, P, ("connection", "close")], None, MALFORMED),
    vector("keep-alive", &[M, S, A, P, ("keep-alive", "1")], None, MALFORMED),
    vector("proxy-connection", &[M, S, A, P, ("proxy-connection", "close")], None, MALFORMED),
    vector("transfer-encoding", &[M, S, A, P, ("transfer-encoding", "chunked")], None, MALFORMED),
    vector("upgrade", &[M, S, A, P, ("upgrade", "h2c")], None, MALFORMED),
    vector("a name in capitals", &[M, S, A, P, ("X-A", "b")], None, MALFORMED),
    vector("a name with a space", &[M, S, A, P, ("x a", "b")], None, MALFORMED),
    vector("a name with a colon", &[M, S, A, P, ("x:a", "b")], None, MALFORMED),
    vector("a name with CRLF", &[M, S, A, P, ("x\r\ny", "b")], None, MALFORMED),
    vector("no name", &[M, S, A, P, ("", "b")], None, MALFORMED),
    vector("a value with CRLF", &[M, S, A, P, ("x", "a\r\nHost: b")], None, MALFORMED),
    vector("a value with LF", &[M, S, A, P, ("x", "a\nb")], None, MALFORMED),
    vector("a value with NUL", &[M, S, A, P, ("x", "a\0b")], None, MALFORMED),
    vector("a method with a space", &[(":method", "GET /admin HTTP/1.1"), S, A, P], None, MALFORMED),
    vector("a path with a space", &[M, S, A, (":path", "/a HTTP/1.1")], None, MALFORMED),
    vector("a path with CRLF", &[M, S, A, (":path", "/a HTTP/1.1\r\nx: y")], None, MALFORMED),
    vector("a path without a slash", &[M, S, A, (":path", "a")], None, MALFORMED),
    vector("an empty path", &[M, S, A, (":path", "")], None, MALFORMED),
    vector("a whole URI for a path", &[M, S, A, (":path", "http://b/")], None, MALFORMED),
    vector("an authority with a path", &[M, S, (":authority", "a/b"), P], None, MALFORMED),
    vector("an authority with CRLF", &[M, S, (":authority", "a\r\nx: y"), P], None, MALFORMED),
    vector("no method", &[S, A, P], None, MALFORMED),
    vector("no path", &[M, S, A], None, MALFORMED),
    vector("no scheme", &[M, A, P], None, MALFORMED),
    vector("two paths", &[M, S, A, P, (":path", "/admin")], None, MALFORMED),
    vector("two methods", &[M, (":method", "POST"), S, A, P], None, MALFORMED),
    vector("two authorities", &[M, S, A, (":authority", "b"), P], None, MALFORMED),
    vector("an unknown pseudo-header", &[M, S, A, P, (":x", "y")], None, MALFORMED),
    vector("a pseudo-header of answers", &[M, S, A, P, (":status", "200")], None, MALFORMED),
    vector("a pseudo-header behind a header", &[M, S, A, ("x", "y"), P], None, MALFORMED),
    vector("Host that is the authority", &[M, S, A, P, ("host", "a")], SEEN, "200"),
    vector("Host that is not", &[M, S, A, P, ("host", "b")], None, "400"),
    vector("two Hosts", &[M, S, P, ("host", "a"), ("host", "b")], None, "400"),
    vector("two lengths", &[M, S, A, P, ("content-length", "0"), ("content-length", "3")], None, MALFORMED),
    vector("a protocol without CONNECT", &[M, S, A, P, (":protocol", "websocket")], None, MALFORMED),
    with_body("a body", POST, "abc", Some("POST /a abc")),
    with_body("its length", &[M, S, A, P, ("content-length", "3")], "abc", Some("GET /a abc")),
    with_body("a length that is too short", &[M, S, A, P, ("content-length", "2")], "abc", None),
    with_body("a length that is too long", &[M, S, A, P, ("content-length", "4")], "abc", None),
    with_body("a length with a sign", &[M, S, A, P, ("content-length", "+3")], "abc", None),
    // h2 leaves it out.
    with_trailers("a pseudo-header in trailers", &[(":path", "/admin")], Some("POST /a abc")),
    with_trailers("connection in trailers", &[("connection", "close")], None),
    with_trailers("CRLF in trailers", &[("x", "a\r\nb")], None),
];

fn frame(kind: u8, flags: u8, stream: u32, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), content].concat()
}

/// Literal fields without indexing (RFC 7541 §6.2.2), as they are.
fn fields(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect();
    frame(HEADERS, END_HEADERS | flags, stream, &block)
}

fn request(stream: u32, vector: &Vector) -> Vec<u8> {
    let Some(body) = vector.body else { return fields(stream, END_STREAM, vector.fields) };
    let ends = if vector.trailers.is_empty() { END_STREAM } else { 0 };
    let mut bytes = fields(stream, 0, vector.fields);
    bytes.extend(frame(DATA, ends, stream, body.as_bytes()));
    if !vector.trailers.is_empty() {
        bytes.extend(fields(stream, END_STREAM, vector.trailers));
    }
    bytes
}

/// Writes the vector and then a request that nothing is wrong with; gives what became of each.
async fn told(web: &Pod, to: SocketAddr, vector: &Vector) -> [String; 2] {
    let mut client = web.connect(to).await;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    bytes.extend(request(1, vector));
    bytes.extend(fields(3, END_STREAM, &[M, S, A, (":path", "/next")]));
    // The connection may end at what is wrong with it.
    let _ = client.write_all(&bytes).await;
    let mut told = [String::new(), String::new()];
    while told.iter().any(String::is_empty) {
        let Some((kind, flags, stream, content)) = soon(read_frame(&mut client)).await else { break };
        let number = |at: usize| content.get(at..at + 4).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
        let what = match kind {
            // Fields of the static table (RFC 7541 A).
            HEADERS => match content[0] {
                0x88 => "200".to_owned(),
                0x8c => "400".to_owned(),
                other => format!("an answer that begins with {other:#x}"),
            },
            RST_STREAM => format!("reset {}", number(0).unwrap()),
            GOAWAY => format!("gone {}", number(4).unwrap()),
            SETTINGS if flags & ACK == 0 => {
                let _ = client.write_all(&frame(SETTINGS, ACK, 0, &[])).await;
                continue;
            }
            _ => continue,
        };
        let first = usize::from(stream == 3);
        for of in if stream == 0 { 0..2 } else { first..first + 1 } {
            if told[of].is_empty() {
                told[of].clone_from(&what);
            }
        }
    }
    told
}

async fn read_frame(stream: &mut TcpStream) -> Option<(u8, u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let mut content = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut content).await.ok()?;
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), content))
}

/// An application that answers every whole request, and tells what they were.
async fn serve(stream: TcpStream) -> Heard {
    let mut heard = Heard::new();
    let Ok(mut connection) = h2::server::handshake(stream).await else { return heard };
    let mut streams = JoinSet::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, mut body) = request.into_parts();
        streams.spawn(async move {
            let mut content = Vec::new();
            while let Some(data) = body.data().await {
                content.extend(data.ok()?);
            }
            let trailers = body.trailers().await.ok()?.unwrap_or_default();
            assert!(trailers.is_empty(), "{trailers:?}");
            let mut answer = respond.send_response(http::Response::new(()), false).ok()?;
            answer.send_data(Bytes::new(), true).ok()?;
            Some(format!("{} {} {}", head.method, head.uri.path(), String::from_utf8_lossy(&content)))
        });
    }
    while let Some(stream) = streams.join_next().await {
        heard.extend(stream.unwrap());
    }
    heard
}

#[tokio::test]
async fn frames_say_one_request_or_none() {
    let mesh = Mesh::new();
    let (web, _cart, listener, vip) = routed(&mesh);
    mesh.policy(no_admin());
    let mut wrong = Vec::new();
    for vector in VECTORS {
        for (way, to) in [("by the Service", vip), ("to the pod", listener.local_addr().unwrap())] {
            let (told, mut heard) = heard(&listener, serve, told(&web, to, vector)).await;
            heard.sort();
            // A stream error leaves the connection to others; h2 ends it where a field is none (RFC 9113 §5.4.2).
            let mut seen: Vec<&str> = vector.seen.into_iter().chain(["GET /next "]).collect();
            seen.sort_unstable();
            let ended = vector.told == MALFORMED && told == [ENDED, ENDED] && heard.is_empty();
            if !ended && (heard != seen || told != [vector.told, "200"]) {
                wrong.push(format!("{}, {way}: told {told:?} for {:?}, heard {heard:?}", vector.name, vector.told));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
