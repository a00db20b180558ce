//! A client's HTTP/1 bytes on their way to hyper: a request whose length two servers could read differently goes no
//! further (RFC 9112 §6.3, §11.2).
//!
//! hyper repairs such requests as the RFC permits: it goes by Transfer-Encoding alone, joins equal Content-Lengths, and
//! nothing of that is left to see. Whoever stands before us may have read the other length, so here the lines of each
//! head are looked at as they come. Where this file and hyper could disagree on where a message ends, it looks no
//! further, and hyper's repair is what holds.

use std::io::BufRead;
use std::task::{Context, Poll, ready};

use crate::proxy::copy::Side;
use crate::proxy::failure::Failure;

/// Longer than any line that says how long a message is; of others no more is looked at.
const LINE: usize = 256;
/// Neither a method nor a header may have it: hyper answers 400 and closes, whatever it has read before.
const POISON: &[u8] = b"\0";

/// A client's side, of which no ambiguous head is read.
pub(super) struct Unambiguous<S> {
    side: S,
    gate: Gate,
    /// How much of what the side has filled may be read.
    passed: usize,
}

enum Gate {
    /// Each head is looked at.
    Watched(Watch),
    /// What has passed is read, then [`POISON`].
    Refused,
    /// Everything passes.
    Open,
}

impl<S> Unambiguous<S> {
    /// Of a client that speaks HTTP/1.
    pub(super) fn watched(side: S) -> Self {
        Self { side, gate: Gate::Watched(Watch::default()), passed: 0 }
    }

    /// Of one whose protocol has one way to say how long a message is.
    pub(super) fn open(side: S) -> Self {
        Self { side, gate: Gate::Open, passed: 0 }
    }

    pub(super) fn into_inner(self) -> S {
        self.side
    }

    fn is_poisoned(&self) -> bool {
        matches!(self.gate, Gate::Refused) && self.passed == 0
    }
}

impl<S: Side> Side for Unambiguous<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<bool, Failure>> {
        if self.is_poisoned() {
            return Poll::Ready(Ok(true));
        }
        let more = ready!(self.side.poll_fill(cx, scratch));
        if let Gate::Watched(watch) = &mut self.gate {
            let fresh = self.side.filled(scratch).get(self.passed..).unwrap_or_default();
            match watch.look(fresh) {
                Ok(()) => self.passed += fresh.len(),
                Err(before) => {
                    self.passed += before;
                    self.gate = Gate::Refused;
                }
            }
        }
        Poll::Ready(more)
    }

    fn filled<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        match self.gate {
            Gate::Open => self.side.filled(scratch),
            Gate::Refused if self.passed == 0 => POISON,
            Gate::Refused | Gate::Watched(_) => self.side.filled(scratch).get(..self.passed).unwrap_or_default(),
        }
    }

    fn consume(&mut self, count: usize) {
        if self.is_poisoned() {
            self.gate = Gate::Open;
            return;
        }
        self.passed = self.passed.saturating_sub(count);
        self.side.consume(count);
    }

    fn keep(&mut self, scratch: &[u8]) {
        self.side.keep(scratch);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Failure>> {
        self.side.poll_write(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.side.poll_flush(cx)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.side.poll_finish(cx)
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Failure> {
        self.side.poll_broken(cx, scratch)
    }
}

/// Where in a client's bytes we are.
#[derive(Debug, Default)]
pub(super) struct Watch {
    at: At,
    /// The beginning of a line that is not whole yet.
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Lines before a request line.
    #[default]
    Start,
    /// Lines of a head.
    Head(Length),
    /// Bytes of a body, or of a chunk with its line end; then what follows.
    Body { left: u64, chunked: bool },
    /// The line with a chunk's size.
    Size,
    /// Lines after the last chunk.
    Trailers,
    /// Not looked at any more.
    Off,
}

/// How long the head says that its body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Length {
    content_length: Option<u64>,
    chunked: bool,
    /// Something else may be spoken after it.
    switches: bool,
}

/// A head whose body's length is said twice.
struct Twice;

impl Watch {
    /// Looks at what has come. The error says how many of `bytes` come before the head that is refused.
    pub(super) fn look(&mut self, bytes: &[u8]) -> Result<(), usize> {
        let (mut rest, mut before) = (bytes, 0);
        while !rest.is_empty() && self.at != At::Off {
            if self.at == At::Start && self.line.is_empty() {
                before = bytes.len() - rest.len();
            }
            if let At::Body { left, chunked } = self.at {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                rest = rest.get(taken..).unwrap_or_default();
                self.at = match left - taken as u64 {
                    0 if chunked => At::Size,
                    0 => At::Start,
                    left => At::Body { left, chunked },
                };
                continue;
            }
            let mut cursor = rest;
            // From memory: it cannot fail.
            let length = cursor.skip_until(b'\n').unwrap_or(rest.len());
            let (line, after) = rest.split_at(length.min(rest.len()));
            rest = after;
            self.line.extend(line.iter().take(LINE.saturating_sub(self.line.len())));
            if line.ends_with(b"\n") {
                self.at = self.whole_line().map_err(|Twice| before)?;
                self.line.clear();
            }
        }
        Ok(())
    }

    /// What follows the line.
    fn whole_line(&self) -> Result<At, Twice> {
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        Ok(match self.at {
            At::Start if line.is_empty() => At::Start,
            At::Start => At::Head(Length { switches: line.starts_with(b"CONNECT "), ..Length::default() }),
            At::Head(length) if line.is_empty() => length.body(),
            At::Head(length) => length.with(line)?.map_or(At::Off, At::Head),
            At::Size => chunk(line).map_or(At::Off, |size| match size.checked_add(2) {
                Some(2) => At::Trailers,
                Some(left) => At::Body { left, chunked: true },
                None => At::Off,
            }),
            At::Trailers if line.is_empty() => At::Start,
            At::Trailers => At::Trailers,
            At::Body { .. } | At::Off => At::Off,
        })
    }
}

impl Length {
    /// With one more header. `None`: hyper will refuse it, or read more of it than is looked at here.
    fn with(mut self, line: &[u8]) -> Result<Option<Self>, Twice> {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Ok(None) };
        let (name, value) = line.split_at(colon);
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        let (is_length, is_coding) = (is("content-length"), is("transfer-encoding"));
        if (is_length || is_coding) && (self.chunked || self.content_length.is_some()) {
            return Err(Twice);
        }
        if line.len() >= LINE - 2 && (is_length || is_coding) {
            return Ok(None);
        }
        if is_length {
            let digits = std::str::from_utf8(value.get(1..).unwrap_or_default()).unwrap_or_default();
            self.content_length = digits.trim_matches([' ', '\t']).parse().ok();
            return Ok(self.content_length.map(|_| self));
        }
        self.chunked |= is_coding;
        self.switches |= is("upgrade");
        Ok(Some(self))
    }

    /// What follows the head.
    fn body(self) -> At {
        match self.content_length {
            _ if self.switches => At::Off,
            _ if self.chunked => At::Size,
            None | Some(0) => At::Start,
            Some(left) => At::Body { left, chunked: false },
        }
    }
}

/// The size that a chunk's first line says.
fn chunk(line: &[u8]) -> Option<u64> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let digits = line.get(..digits).and_then(|digits| std::str::from_utf8(digits).ok())?;
    u64::from_str_radix(digits, 16).ok()
}
