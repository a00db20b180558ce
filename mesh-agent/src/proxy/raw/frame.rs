//! `mesh-raw/1`: the frames inside a TLS connection that carries one tunnel at a time.
//!
//! ```text
//!  0        1                          4
//!  +--------+--------------------------+----------------
//!  | kind   | length, big-endian       | length bytes
//!  +--------+--------------------------+----------------
//!
//!  kind 1  request   | 1 (version) | 4 or 6 | port (2) | address (4 or 16) | items: key (1) length (1) value |
//!       2  reply     | code (1): 0 = the application's connection stands, else a word of `CODES` |
//!       3  data      | bytes of the application |
//!       4  end       end of this direction's data
//!       5  reset     the application's connection was reset: the tunnel is over
//!       6  done      to the client: the tunnel is over on both sides, the next request may come
//!
//!  client   request  data*  end               request ...
//!  server            reply  data*  end  done
//!
//!  client   request  data*  reset         request ...      whoever is told of a reset says it too;
//!  server            reply  data*  reset  done             what else was on its way is skipped
//! ```
//!
//! The length makes end and reset explicit: a connection that ends anywhere else was cut. Items of a request
//! are labels (1 = W3C trace id, parent id and flags); unknown ones are skipped. Nothing here does IO.

use std::net::{IpAddr, SocketAddr};

use crate::model::outcome::Outcome;

/// ALPN of this protocol.
pub(crate) const ALPN: &[u8] = b"mesh-raw/1";
/// Length of a frame's head.
pub(super) const HEAD: usize = 4;
/// The longest request: an address and a few items of at most 257 bytes.
const MAX_REQUEST: usize = 1024;
/// What a length can say.
pub(super) const MAX_LENGTH: usize = (1 << 24) - 1;

const VERSION: u8 = 1;
const TRACE: u8 = 1;

/// What an agent may answer instead of "it stands". The position is the code: words are only ever appended.
const CODES: [Outcome; 11] = [
    Outcome::Ok,
    Outcome::BadTarget,
    Outcome::Denied,
    Outcome::PlaintextRefused,
    Outcome::ConnectRefused,
    Outcome::ConnectTimeout,
    Outcome::ConnectUnreachable,
    Outcome::Overloaded,
    Outcome::AgentDrained,
    Outcome::Revoked,
    Outcome::Internal,
];

/// The kinds of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Reply,
    Data,
    End,
    Reset,
    Done,
}

impl Kind {
    const ALL: [Self; 6] = [Self::Request, Self::Reply, Self::Data, Self::End, Self::Reset, Self::Done];

    fn byte(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Reply => 2,
            Self::Data => 3,
            Self::End => 4,
            Self::Reset => 5,
            Self::Done => 6,
        }
    }

    fn longest(self) -> usize {
        match self {
            Self::Request => MAX_REQUEST,
            Self::Reply => 1,
            Self::Data => MAX_LENGTH,
            Self::End | Self::Reset | Self::Done => 0,
        }
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    #[error("a frame of kind {kind:?} with {length} bytes")]
    Length { kind: Kind, length: usize },
    #[error("a request of version {0}")]
    Version(u8),
    #[error("a request without an address")]
    Address,
    #[error("a request that is cut off")]
    Items,
    #[error("a reply with unknown code {0}")]
    Code(u8),
}

/// The head of a frame.
pub(super) fn head(kind: Kind, length: usize) -> [u8; HEAD] {
    let [_, a, b, c] = u32::try_from(length.min(MAX_LENGTH)).unwrap_or_default().to_be_bytes();
    [kind.byte(), a, b, c]
}

/// Reads a head; `None` = more bytes are needed.
///
/// # Errors
/// When no such frame may be.
pub(super) fn read_head(bytes: &[u8]) -> Result<Option<(Kind, usize)>, FrameError> {
    let &[byte, a, b, c, ..] = bytes else { return Ok(None) };
    let kind = Kind::ALL.into_iter().find(|kind| kind.byte() == byte).ok_or(FrameError::Kind(byte))?;
    let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    if length > kind.longest() {
        return Err(FrameError::Length { kind, length });
    }
    Ok(Some((kind, length)))
}

/// W3C trace context of a tunnel: trace id and parent id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    pub(super) trace: u128,
    pub(super) parent: u64,
}

/// A whole request frame.
pub(super) fn request(target: SocketAddr, trace: Trace) -> Vec<u8> {
    let mut body = vec![VERSION];
    let family = if target.is_ipv4() { 4 } else { 6 };
    body.push(family);
    body.extend(target.port().to_be_bytes());
    match target.ip() {
        IpAddr::V4(ip) => body.extend(ip.octets()),
        IpAddr::V6(ip) => body.extend(ip.octets()),
    }
    body.extend([TRACE, 25]);
    body.extend(trace.trace.to_be_bytes());
    body.extend(trace.parent.to_be_bytes());
    // Flags: not sampled.
    body.push(0);
    let mut frame = head(Kind::Request, body.len()).to_vec();
    frame.append(&mut body);
    frame
}

/// The target that a request's body asks for, in canonical form.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read_request(body: &[u8]) -> Result<SocketAddr, FrameError> {
    let (&version, rest) = body.split_first().ok_or(FrameError::Items)?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let &[family, high, low, ref rest @ ..] = rest else { return Err(FrameError::Address) };
    let port = u16::from_be_bytes([high, low]);
    let (ip, items) = match family {
        4 => rest.split_first_chunk::<4>().map(|(ip, rest)| (IpAddr::from(*ip), rest)),
        6 => rest.split_first_chunk::<16>().map(|(ip, rest)| (IpAddr::from(*ip), rest)),
        _ => None,
    }
    .ok_or(FrameError::Address)?;
    skip_items(items)?;
    if port == 0 {
        return Err(FrameError::Address);
    }
    Ok(crate::model::addr::canonical(SocketAddr::new(ip, port)))
}

fn skip_items(mut items: &[u8]) -> Result<(), FrameError> {
    while let [_key, length, rest @ ..] = items {
        items = rest.get(usize::from(*length)..).ok_or(FrameError::Items)?;
    }
    if items.is_empty() { Ok(()) } else { Err(FrameError::Items) }
}

/// A whole reply frame; [`Outcome::Ok`] = the application's connection stands.
pub(super) fn reply(outcome: Outcome) -> [u8; HEAD + 1] {
    let known = CODES.iter().position(|known| *known == outcome);
    // What has no code of its own is the agent's own trouble.
    let code = known.or_else(|| CODES.iter().position(|known| *known == Outcome::Internal)).unwrap_or(CODES.len());
    let [kind, a, b, c] = head(Kind::Reply, 1);
    [kind, a, b, c, u8::try_from(code).unwrap_or(u8::MAX)]
}

/// The outcome that a reply's body says.
///
/// # Errors
/// When the code is not one of ours.
pub(super) fn read_reply(body: &[u8]) -> Result<Outcome, FrameError> {
    let code = body.first().copied().ok_or(FrameError::Items)?;
    CODES.get(usize::from(code)).copied().ok_or(FrameError::Code(code))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TRACE: Trace = Trace { trace: 7, parent: 9 };

    #[test]
    fn a_request_is_read_as_it_was_written() {
        for target in ["10.0.0.1:80", "[2001:db8::1]:65535", "127.0.0.1:1"] {
            let target: SocketAddr = target.parse().unwrap();
            let frame = request(target, TRACE);
            let (kind, length) = read_head(&frame).unwrap().unwrap();
            assert_eq!((kind, length), (Kind::Request, frame.len() - HEAD));
            assert_eq!(read_request(&frame[HEAD..]), Ok(target));
        }
    }

    #[test]
    fn a_mapped_address_is_canonical() {
        let mapped = request("[::ffff:10.0.0.1]:80".parse().unwrap(), TRACE);
        assert_eq!(read_request(&mapped[HEAD..]), Ok("10.0.0.1:80".parse().unwrap()));
    }

    #[test]
    fn bad_requests_are_named() {
        let good = request("10.0.0.1:80".parse().unwrap(), TRACE)[HEAD..].to_vec();
        let with = |at: usize, byte: u8| {
            let mut body = good.clone();
            body[at] = byte;
            body
        };
        for (body, error) in [
            (vec![], FrameError::Items),
            (with(0, 2), FrameError::Version(2)),
            (with(1, 5), FrameError::Address),
            (good[..7].to_vec(), FrameError::Address),
            (good[..20].to_vec(), FrameError::Items),
            ([&good[..], &[9]].concat(), FrameError::Items),
            ([1, 4, 0, 0, 10, 0, 0, 1].to_vec(), FrameError::Address),
        ] {
            assert_eq!(read_request(&body), Err(error), "{body:?}");
        }
        assert_eq!(read_request(&[&good[..], &[200, 2, 0, 0]].concat()), Ok("10.0.0.1:80".parse().unwrap()));
    }

    #[test]
    fn every_refusal_keeps_its_word() {
        for outcome in CODES {
            assert_eq!(read_reply(&reply(outcome)[HEAD..]), Ok(outcome));
        }
        assert_eq!(read_reply(&reply(Outcome::TlsFailed)[HEAD..]), Ok(Outcome::Internal));
        assert_eq!(read_reply(&[99]), Err(FrameError::Code(99)));
    }

    #[test]
    fn impossible_heads_are_refused() {
        assert_eq!(read_head(&[0, 0, 0, 0]), Err(FrameError::Kind(0)));
        assert_eq!(read_head(&[4, 0, 0, 1]), Err(FrameError::Length { kind: Kind::End, length: 1 }));
        assert_eq!(read_head(&[1, 0, 4, 1]), Err(FrameError::Length { kind: Kind::Request, length: 1025 }));
        assert_eq!(read_head(&[3, 0, 0]), Ok(None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = (read_head(&bytes), read_request(&bytes), read_reply(&bytes));
        }

        #[test]
        fn a_head_is_read_as_it_was_written(kind in prop::sample::select(&Kind::ALL[..]), length in 0..=MAX_LENGTH) {
            let read = read_head(&head(kind, length));
            let expected = Ok(Some((kind, length)));
            prop_assert_eq!(read, if length <= kind.longest() { expected } else { Err(FrameError::Length { kind, length }) });
        }
    }
}
