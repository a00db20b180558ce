//! The smallest HTTP/1.1 client: one request, one connection, from a network namespace of choice.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::Netns;

const WITHIN: Duration = Duration::from_secs(10);

/// A response's status and body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body, as text.
    pub body: String,
}

/// Sends `GET path` to `address` from inside `netns`.
///
/// # Errors
/// When the server cannot be reached or does not speak HTTP.
pub fn get(netns: &Netns, address: SocketAddr, path: &str) -> Result<Response> {
    let mut stream = netns
        .run(|| TcpStream::connect_timeout(&address, WITHIN))?
        .with_context(|| format!("cannot connect to {address} from {}", netns.name()))?;
    stream.set_read_timeout(Some(WITHIN))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("no whole answer from {address}"))?;
    parse(&String::from_utf8_lossy(&answer)).with_context(|| format!("{address} does not answer in HTTP"))
}

fn parse(answer: &str) -> Option<Response> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked");
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Some(Response { status, body })
}

/// Joins the chunks of RFC 9112 §7.1; the body must be text, so that lengths can be cut as characters.
fn unchunk(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_whole_or_in_chunks() {
        let response = |body: &str| Some(Response { status: 200, body: body.to_owned() });
        assert_eq!(parse("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), response("hi"));
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunks), response("abcde"));
        assert_eq!(parse("nonsense"), None);
        assert_eq!(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc\r\n"), None);
    }
}
