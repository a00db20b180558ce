//! What a connection speaks: declared by the Service port, or seen in its first bytes.

use std::future::poll_fn;
use std::task::{Poll, ready};

use crate::proxy::copy::Side;
use crate::proxy::failure::Failure;
use crate::proxy::scratch::Scratch;

/// The beginning of every HTTP/2 connection (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// No method that is registered is longer.
const LONGEST_METHOD: usize = 32;
/// How much of a request line is looked at before it is taken for something else.
const LONGEST_LINE: usize = 16 << 10;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Spoken {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Something else.
    Other,
}

/// What `bytes`, the first of a connection, are; `None`: they can still become HTTP.
#[must_use]
pub(in crate::proxy) fn spoken(bytes: &[u8]) -> Option<Spoken> {
    if bytes.starts_with(PREFACE) {
        return Some(Spoken::Http2);
    }
    if PREFACE.starts_with(bytes) {
        return None;
    }
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    match bytes.get(method) {
        _ if method > LONGEST_METHOD => Some(Spoken::Other),
        None => None,
        Some(b' ') if method > 0 => request_line(bytes.get(method + 1..).unwrap_or_default()),
        Some(_) => Some(Spoken::Other),
    }
}

/// After the method: a target without spaces, one space, a version (RFC 9112 §3).
fn request_line(rest: &[u8]) -> Option<Spoken> {
    const VERSION: &[u8] = b"HTTP/1.";
    let target = rest.iter().take_while(|byte| **byte > b' ' && **byte != 0x7f).count();
    let version = match rest.get(target) {
        None if rest.len() > LONGEST_LINE => return Some(Spoken::Other),
        None => return None,
        Some(b' ') if target > 0 => rest.get(target + 1..).unwrap_or_default(),
        Some(_) => return Some(Spoken::Other),
    };
    if version.starts_with(VERSION) {
        Some(Spoken::Http1)
    } else if VERSION.starts_with(version) {
        None
    } else {
        Some(Spoken::Other)
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a server whose first bytes these are waits for a client's HTTP/2: its SETTINGS may come before it has read
/// anything (RFC 9113 §3.4), as those of gRPC do.
fn begins_http2(bytes: &[u8]) -> bool {
    // Length of three bytes, type SETTINGS, no flag, stream 0 (RFC 9113 §4.1).
    matches!(bytes, [0, 0, length, 4, 0, 0, 0, 0, 0, ..] if length % 6 == 0)
}

/// Reads until it is clear what `client` speaks; what was read is in `read`, also when this is given up before. When
/// `server` speaks first, and not HTTP/2, or either ends before, it is something else: nobody who waits for a greeting
/// is kept waiting.
///
/// # Errors
/// The client's.
pub(in crate::proxy) async fn first_bytes(
    client: &mut impl Side,
    mut server: Option<&mut impl Side>,
    read: &mut Vec<u8>,
    scratch: &Scratch,
) -> Result<Spoken, Failure> {
    poll_fn(|cx| {
        let mut scratch = scratch.borrow_mut();
        loop {
            if let Some(spoken) = spoken(read).filter(|_| !read.is_empty()) {
                // A tunnel may have opened more than the frame whose bytes these are.
                client.keep(&scratch);
                return Poll::Ready(Ok(spoken));
            }
            match client.poll_fill(cx, &mut scratch) {
                Poll::Ready(Err(failure)) => {
                    client.keep(&scratch);
                    return Poll::Ready(Err(failure));
                }
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(Spoken::Other)),
                Poll::Ready(Ok(true)) => {
                    let filled = client.filled(&scratch);
                    let count = filled.len();
                    read.extend_from_slice(filled);
                    client.consume(count);
                }
                Poll::Pending => {
                    let Some(server) = &mut server else { return Poll::Pending };
                    // Its end, or its failure, is found again by whoever reads it next.
                    ready!(server.poll_fill(cx, &mut scratch)).ok();
                    let waits = begins_http2(server.filled(&scratch));
                    server.keep(&scratch);
                    return if waits { Poll::Pending } else { Poll::Ready(Ok(Spoken::Other)) };
                }
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_are_told_apart_as_soon_as_they_can_be() {
        for (bytes, expected) in [
            ("", None),
            ("P", None),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Spoken::Http2)),
            ("GET", None),
            ("GET /", None),
            ("GET /a?b HTTP/1", None),
            ("GET /a?b HTTP/1.", Some(Spoken::Http1)),
            ("PROPFIND / HTTP/1.1\r\n", Some(Spoken::Http1)),
            ("OPTIONS * HTTP/1.0\r\n", Some(Spoken::Http1)),
            ("GET key\r\n", Some(Spoken::Other)),
            ("GET  / HTTP/1.1", Some(Spoken::Other)),
            ("GET / HTTP/2.0", Some(Spoken::Other)),
            ("HELO example.com\r\n", Some(Spoken::Other)),
            ("*1\r\n$4\r\nPING\r\n", Some(Spoken::Other)),
            ("\x16\x03\x01", Some(Spoken::Other)),
            (" GET / HTTP/1.1", Some(Spoken::Other)),
            ("ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKL", Some(Spoken::Other)),
        ] {
            assert_eq!(spoken(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_server_of_http2_is_told_from_one_that_greets() {
        assert!(begins_http2(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"));
        assert!(begins_http2(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"));
        for other in [&b"220 a.example ready\r\n"[..], b"\x4a\x00\x00\x00\x0a8.0.36\x00", b"\x00\x00\x06\x04", b""] {
            assert!(!begins_http2(other), "{other:?}");
        }
    }

    #[test]
    fn more_bytes_never_change_an_answer() {
        for whole in ["GET /a HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "SET a b\r\n", "POST x HTTP/3\r\n"] {
            let mut answers = (0..=whole.len()).map(|length| spoken(&whole.as_bytes()[..length]));
            let first = answers.find_map(|answer| answer).expect("the whole line is clear");
            assert!(answers.all(|answer| answer == Some(first)), "{whole}");
        }
    }
}
