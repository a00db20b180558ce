//! HTTP/1: both ends written out, so that each byte is ours and each difference the mesh's.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use anyhow::{Context, Result};
use mesh_tests::mesh::scenario;
use mesh_tests::scale;

use crate::message::{Kind, Reader};
use crate::tcp::{ending, reset, told};
use crate::world::{Case, Ends, REQUESTS, Transcript, World};

pub const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const NO: &[u8] = b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\n\r\n";
const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

/// A request, and the answer to it.
type Talk = (&'static str, &'static [u8], &'static [u8]);

/// Each on a connection of its own, and then once more where the connection goes on.
const TALKS: &[Talk] = &[
    ("HTTP/1.0 with Host", b"GET /a HTTP/1.0\r\nHost: a\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"),
    ("HTTP/1.0 without", b"GET /a HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n\r\nto the end"),
    ("absolute-form", b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", OK),
    ("CONNECT, refused", b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", NO),
    ("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 204 No Content\r\nAllow: GET\r\n\r\n"),
    ("HEAD", b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n"),
    ("HEAD without a length", b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n"),
    ("204", GET, b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
    ("304 with a length", GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"x\"\r\n\r\n"),
    ("an empty body", GET, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("another reason, and an unknown status", GET, b"HTTP/1.1 299 Quite Well\r\nContent-Length: 0\r\n\r\n"),
    ("an answer to its end", GET, b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end"),
    ("an answer with close", GET, b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"),
    (
        "chunks both ways, extensions, trailers that are announced",
        b"POST /a HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n\
          3;a=b\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Sum: 7\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n2;c\r\nok\r\n0\r\nX-Sum: 2\r\n\r\n",
    ),
    ("a body on GET", b"GET /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", OK),
    ("a body on DELETE", b"DELETE /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", OK),
    ("a method of its own", b"BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", NO),
    ("a target byte for byte", b"GET /%2F//..;x=y/./a%20b/%zz?&=?%00 HTTP/1.1\r\nHost: a\r\n\r\n", OK),
    ("a query that is empty", b"GET /a? HTTP/1.1\r\nHost: a\r\n\r\n", OK),
    ("a target with a double slash first", b"GET //a/../b;c HTTP/1.1\r\nHost: a\r\n\r\n", OK),
    (
        "headers repeated, empty, in mixed case, outside ASCII",
        b"GET /a HTTP/1.1\r\nHost: a\r\nX-MiXed: 1\r\nempty:\r\nX-List: a\r\nX-List: b, c\r\nx-list: \r\n\
          X-Eight: \xe9\xff\r\ncookie: a=b\r\nCookie: c=d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nsEt-cOOkie: c=d\r\nX-Eight: \xe9\xff\r\nX-Empty:\r\n\
          Content-Length: 0\r\n\r\n",
    ),
    (
        "names that only look like ours",
        b"GET /a HTTP/1.1\r\nHost: a\r\nx-mesh: 1\r\nX-Forwarded-For: 1.2.3.4\r\nVia: 1.1 b\r\n\
          Forwarded: for=a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nServer: x\r\nVia: 1.1 c\r\nDate: then\r\nContent-Length: 0\r\n\r\n",
    ),
    ("a client that wants no more", b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", OK),
];

/// What two ends do that is more than a request and its answer.
const CASES: &[Case] = &[
    ("a target of 8 KiB and a head of 60 KiB", |ends| {
        let long = "x%2F".repeat(2048);
        let headers: String = (0..60).map(|n| format!("X-{n}: {}\r\n", "y".repeat(1000))).collect();
        let answer = format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: 0\r\n\r\n");
        exchange(ends, format!("GET /{long} HTTP/1.1\r\nHost: a\r\n{headers}\r\n").as_bytes(), answer.as_bytes())
    }),
    ("100-continue, granted", |ends| {
        ends.client.write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")?;
        let server = ends.accept()?;
        let mut request = Reader::new(&server);
        let head = request
            .until(b"\r\n\r\n")?
            .is_some_and(|head| head.to_ascii_lowercase().windows(12).any(|w| w == b"100-continue"));
        (&server).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        let mut answer = Reader::new(&ends.client);
        let granted = answer.message(Kind::Response)?;
        (&ends.client).write_all(b"abc")?;
        let body = told(&mut server.try_clone()?, 3)?;
        (&server).write_all(OK)?;
        Ok(vec![format!("asked: {head}"), granted, body, answer.message(Kind::Response)?])
    }),
    ("100-continue, refused", |ends| {
        ends.client.write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")?;
        let server = ends.accept()?;
        Reader::new(&server).until(b"\r\n\r\n")?;
        (&server).write_all(b"HTTP/1.1 417 Expectation Failed\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
        Ok(vec![Reader::new(&ends.client).message(Kind::Response)?])
    }),
    ("a switch to another protocol, bytes with the answer, ends one by one", |ends| {
        let request = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        ends.client.write_all(request)?;
        let mut server = ends.accept()?;
        let asked = Reader::new(&server).message(Kind::Request)?;
        server.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi",
        )?;
        let mut answer = Reader::new(&ends.client);
        let granted = answer.message(Kind::Response)?;
        while answer.rest.len() < 4 && answer.more()? {}
        let first = answer.rest.escape_ascii().to_string();
        ends.client.write_all(b"\x00GET / HTTP/1.1\r\n\r\n")?;
        ends.client.shutdown(Shutdown::Write)?;
        let heard = ending(&mut server);
        server.write_all(b"last")?;
        drop(server);
        Ok(vec![asked, granted, first, heard, ending(&mut ends.client)])
    }),
    ("a CONNECT that is granted", |ends| {
        ends.client.write_all(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")?;
        let mut server = ends.accept()?;
        let asked = Reader::new(&server).message(Kind::Request)?;
        server.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
        let granted = Reader::new(&ends.client).until(b"\r\n\r\n")?.unwrap_or_default();
        ends.client.write_all(b"\x16\x03\x01")?;
        let heard = told(&mut server, 3)?;
        reset(server)?;
        Ok(vec![asked, granted.starts_with(b"HTTP/1.1 200").to_string(), heard, ending(&mut ends.client)])
    }),
    ("requests one behind another", |ends| {
        let requests: String = (0..20).map(|n| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
        ends.client.write_all(requests.as_bytes())?;
        let server = ends.accept()?;
        let (mut requests, mut answers) = (Reader::new(&server), Reader::new(&ends.client));
        let mut transcript = Vec::new();
        for n in 0..20 {
            transcript.push(requests.message(Kind::Request)?);
            (&server).write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{n:02}").as_bytes())?;
        }
        for _ in 0..20 {
            transcript.push(answers.message(Kind::Response)?);
        }
        Ok(transcript)
    }),
    ("an answer before the request has ended", |ends| {
        ends.client.write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")?;
        let server = ends.accept()?;
        let mut request = Reader::new(&server);
        request.until(b"\r\n\r\n")?;
        let first = request.until(b"abc\r\n")?.is_some();
        (&server).write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")?;
        let mut answer = Reader::new(&ends.client);
        let early = answer.until(b"hi\r\n")?.is_some();
        (&ends.client).write_all(b"3\r\ndef\r\n0\r\n\r\n")?;
        let rest = request.until(b"0\r\n\r\n")?.is_some();
        (&server).write_all(b"0\r\n\r\n")?;
        let end = answer.until(b"0\r\n\r\n")?.is_some();
        Ok(vec![format!("{first} {early} {rest} {end}")])
    }),
    ("a refusal while the body is still being sent", |ends| {
        ends.client.write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\nabc")?;
        let mut server = ends.accept()?;
        Reader::new(&server).until(b"\r\n\r\nabc")?;
        server.write_all(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno\n")?;
        server.shutdown(Shutdown::Write)?;
        Ok(vec![Reader::new(&ends.client).message(Kind::Response)?])
    }),
    ("events, each at once", |ends| {
        ends.client.write_all(GET)?;
        let mut server = ends.accept()?;
        Reader::new(&server).message(Kind::Request)?;
        server
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        let mut answer = Reader::new(&ends.client);
        let mut transcript = vec![answer.until(b"\r\n\r\n")?.is_some().to_string()];
        for n in 0..20 {
            // The next one is sent only when this one was seen.
            server.write_all(format!("9\r\ndata: {n:02}\n\r\n").as_bytes())?;
            transcript.push(answer.until(format!("data: {n:02}\n").as_bytes())?.is_some().to_string());
        }
        Ok(transcript)
    }),
    ("a body that is cut short by an end", |ends| cut(ends, b"Content-Length: 10\r\n\r\nabc", false)),
    ("a body that is cut short by a reset", |ends| cut(ends, b"Content-Length: 10\r\n\r\nabc", true)),
    ("chunks that are cut short by an end", |ends| cut(ends, b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", false)),
    ("chunks that are cut short by a reset", |ends| cut(ends, b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", true)),
    ("a request that is cut short", |ends| {
        ends.client.write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")?;
        let server = ends.accept()?;
        let mut request = Reader::new(&server);
        request.until(b"\r\n\r\nabc")?;
        let client = std::mem::replace(&mut ends.client, server.try_clone()?);
        reset(client)?;
        // In whichever way: it must not look whole.
        let end = ending(&mut server.try_clone()?);
        Ok(vec![(end == ", end" || end == ", reset").to_string()])
    }),
    ("a client that ends its data and waits for the answer", |ends| {
        ends.client.write_all(GET)?;
        ends.client.shutdown(Shutdown::Write)?;
        let mut server = ends.accept()?;
        let asked = Reader::new(&server).message(Kind::Request)?;
        server.write_all(OK)?;
        Ok(vec![asked, Reader::new(&ends.client).message(Kind::Response)?])
    }),
    ("a long body each way", |ends| {
        let bytes = scale::pick(8 << 20, 10 << 30);
        stream_through(ends, bytes)
    }),
];

#[test]
fn requests_are_what_they_are_without_the_mesh() -> Result<()> {
    scenario(|mesh| {
        let world = World::new(mesh)?;
        let talks =
            TALKS.iter().map(|(name, request, answer)| (*name, |ends: &mut Ends<'_>| exchange(ends, request, answer)));
        world.same(REQUESTS, &[0], talks)?;
        world.same(REQUESTS, &[0], CASES.iter().copied())
    })
}

/// The request as the server reads it and the answer as the client does, and whether the connection goes on where
/// neither has said that it will not.
pub fn exchange(ends: &mut Ends<'_>, request: &[u8], answer: &[u8]) -> Result<Transcript> {
    let mut client = &ends.client;
    client.write_all(request)?;
    let mut server = ends.accept()?;
    let asked = Reader::new(&server).message(Kind::Request)?;
    server.write_all(answer)?;
    let has = |bytes: &[u8], wanted: &[u8]| bytes.windows(wanted.len()).any(|window| window == wanted);
    let lasts = |bytes: &[u8]| !has(bytes, b"HTTP/1.0") && !has(bytes, b"Connection: close");
    if !lasts(answer) || !lasts(request) {
        drop(server);
        let answered = Reader::new(client).message(kind_of_answer(request))?;
        // A server that wants no more ends its own hop only.
        let end = if lasts(request) { String::new() } else { ending(&mut ends.client) };
        return Ok(vec![asked, answered, end]);
    }
    let answered = Reader::new(client).message(kind_of_answer(request))?;
    let again = talk(client, &server, b"GET /again HTTP/1.1\r\nHost: a\r\n\r\n", OK)?;
    Ok([asked, answered].into_iter().chain(again).collect())
}

/// One request as the server reads it, and its answer as the client does, on a connection that stands.
pub fn talk(mut client: &TcpStream, mut server: &TcpStream, request: &[u8], answer: &[u8]) -> Result<[String; 2]> {
    client.write_all(request)?;
    let asked = Reader::new(server).message(Kind::Request)?;
    server.write_all(answer)?;
    Ok([asked, Reader::new(client).message(kind_of_answer(request))?])
}

fn kind_of_answer(request: &[u8]) -> Kind {
    if request.starts_with(b"HEAD ") { Kind::ResponseToHead } else { Kind::Response }
}

/// An answer of which the server sends no more.
fn cut(ends: &mut Ends<'_>, answer: &[u8], by_reset: bool) -> Result<Transcript> {
    ends.client.write_all(GET)?;
    let mut server = ends.accept()?;
    Reader::new(&server).message(Kind::Request)?;
    server.write_all(&[b"HTTP/1.1 200 OK\r\n", answer].concat())?;
    let mut read = Reader::new(&ends.client);
    // What was sent has arrived before the end comes.
    let head = read.until(b"\r\n\r\n")?.unwrap_or_default();
    let come = read.until(b"abc")?.is_some();
    if by_reset {
        reset(server)?;
    } else {
        drop(server);
    }
    let rest = ending(&mut ends.client);
    let chunked = head.to_ascii_lowercase().windows(7).any(|window| window == b"chunked");
    // An end in order is one before the end of the body all the same: both framings say so.
    let short = !rest.contains("0\\r\\n\\r\\n");
    Ok(vec![format!("{come} {chunked} {short}")])
}

/// A body that is too long for any buffer, to the server and back.
fn stream_through(ends: &mut Ends<'_>, bytes: usize) -> Result<Transcript> {
    let client = ends.client.try_clone()?;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            send_body(&client, &format!("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: {bytes}\r\n\r\n"), bytes)
        });
        let server = ends.accept()?;
        let echo = scope.spawn(move || -> Result<usize> {
            let mut request = Reader::new(&server);
            request.until(b"\r\n\r\n")?;
            let read = request.skip(bytes)?;
            send_body(&server, &format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n"), bytes)?;
            Ok(read)
        });
        let mut answer = Reader::new(&ends.client);
        answer.until(b"\r\n\r\n")?;
        let read = answer.skip(bytes)?;
        let joined = |result: std::thread::Result<Result<usize>>| result.ok().context("a thread panicked")?;
        let sent = sender.join().ok().context("the sender panicked")?;
        sent?;
        Ok(vec![format!("{} there, {read} back", joined(echo.join())?)])
    })
}

fn send_body(mut stream: &TcpStream, head: &str, bytes: usize) -> Result<()> {
    const PIECE: usize = 1 << 20;
    stream.write_all(head.as_bytes())?;
    let piece = vec![b'x'; PIECE];
    for _ in 0..bytes / PIECE {
        stream.write_all(&piece)?;
    }
    Ok(())
}
