//! One TLS connection and the tunnel it carries: request and reply, then a side of a copy.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use super::frame::{self, FrameError, HEAD, Kind, MAX_LENGTH, Trace};
use crate::model::outcome::Outcome;
use crate::proxy::copy::Side;
use crate::proxy::failure::Failure;
use crate::proxy::scratch::Scratch;
use crate::proxy::secure::Secure;

/// A connection between tunnels, or with one.
pub(in crate::proxy) struct RawTunnel {
    pub(super) secure: Secure,
    with: SocketAddr,
    /// Content kept over a wake-up: the beginning of a head, or data that the other side did not take.
    kept: Vec<u8>,
    /// What is not yet consumed: of `kept` if that has any, else of the scratch buffer.
    pub(super) start: usize,
    pub(super) end: usize,
    /// Bytes of the current data frame that are not consumed.
    pub(super) left: usize,
    /// Bytes that the head of our data frame has promised and that are not sent.
    pub(super) owed: usize,
    /// Our end is sent; the peer's has come.
    finished: bool,
    ended: bool,
    /// The server is done with both directions.
    pub(super) done: bool,
    /// The peer has said that the tunnel was reset.
    pub(super) reset: bool,
}

impl RawTunnel {
    /// `with` is the peer, for the reason in the log.
    pub(in crate::proxy) fn new(secure: Secure, with: SocketAddr) -> Self {
        Self {
            secure,
            with,
            kept: Vec::new(),
            start: 0,
            end: 0,
            left: 0,
            owed: 0,
            finished: false,
            ended: false,
            done: false,
            reset: false,
        }
    }

    fn begin(&mut self) {
        (self.finished, self.ended, self.done, self.reset) = (false, false, false, false);
    }

    /// Client: asks for a tunnel to `target` and waits for the answer. The inner error: the connection was dead
    /// before an answer came, another may be tried.
    pub(in crate::proxy) async fn open(
        &mut self,
        target: SocketAddr,
        scratch: &Scratch,
    ) -> Result<Result<(), io::Error>, Failure> {
        let trace = Trace { trace: rand::random::<u128>().max(1), parent: rand::random::<u64>().max(1) };
        let request = frame::request(target, trace);
        self.begin();
        let asked = poll_fn(|cx| {
            ready!(self.secure.poll_send(cx, &request, &[]))?;
            Poll::Ready(io::Result::Ok(()))
        });
        if let Err(error) = asked.await {
            return Ok(Err(error));
        }
        let reply = poll_fn(|cx| {
            ready!(self.secure.poll_sent(cx))?;
            self.poll_control(cx, &mut scratch.borrow_mut(), Kind::Reply)
        });
        match reply.await {
            Ok(Some(body)) => match frame::read_reply(&body).map_err(|error| self.bad(error))? {
                Outcome::Ok => Ok(Ok(())),
                outcome => Err(Failure::RefusedByPeer { by: self.with, outcome }),
            },
            Ok(None) => Ok(Err(io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Server: waits for the next request. `None` = the client has no more of them.
    pub(in crate::proxy) async fn request(&mut self, scratch: &Scratch) -> Result<Option<SocketAddr>, Failure> {
        self.begin();
        match poll_fn(|cx| self.poll_control(cx, &mut scratch.borrow_mut(), Kind::Request)).await {
            Ok(Some(body)) => frame::read_request(&body).map(Some).map_err(|error| self.bad(error)),
            Ok(None) => Ok(None),
            // Without a tunnel on it a connection may end in any way.
            Err(error) if error.kind() != io::ErrorKind::InvalidData => Ok(None),
            Err(error) => Err(self.broken(&error)),
        }
    }

    /// Server: answers the request.
    pub(in crate::proxy) async fn reply(&mut self, outcome: Outcome) -> Result<(), Failure> {
        self.send(&frame::reply(outcome)).await
    }

    /// Server: both directions have ended; the client may ask again.
    pub(in crate::proxy) async fn done(&mut self) -> Result<(), Failure> {
        self.send(&frame::head(Kind::Done, 0)).await
    }

    /// Client: waits until the server is done. Only then is the connection good for another tunnel.
    pub(in crate::proxy) async fn wait_done(&mut self, scratch: &Scratch) -> bool {
        let waited = poll_fn(|cx| self.poll_end(cx, &mut scratch.borrow_mut())).await;
        waited.is_ok() && self.is_quiet()
    }

    /// Whether nothing has come since the last tunnel: what comes then is the end, or wrong.
    pub(in crate::proxy) fn is_quiet(&self) -> bool {
        self.start >= self.end && self.secure.is_quiet()
    }

    /// Ends the tunnel as a failure, and the connection with it.
    pub(in crate::proxy) fn reset(self) {
        self.secure.reset();
    }

    /// Ends a connection without a tunnel.
    pub(in crate::proxy) fn close(self) {
        self.secure.close();
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), Failure> {
        let mut taken = false;
        let sent = poll_fn(|cx| {
            if !taken {
                ready!(self.secure.poll_send(cx, frame, &[]))?;
                taken = true;
            }
            self.secure.poll_sent(cx)
        });
        sent.await.map_err(|error| self.broken(&error))
    }

    /// The body of the next frame, which must be a `wanted` one. `None` = the session ended in order before it.
    fn poll_control(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        wanted: Kind,
    ) -> Poll<io::Result<Option<Vec<u8>>>> {
        loop {
            let content = self.content(scratch);
            if let Some((kind, length)) = frame::read_head(content).map_err(invalid)? {
                if kind == Kind::Reset && wanted == Kind::Request {
                    // The client's, of the last tunnel: it crossed our `done`.
                    self.start += HEAD;
                    continue;
                }
                if kind != wanted {
                    return Poll::Ready(Err(invalid(FrameError::Length { kind, length })));
                }
                if let Some(body) = content.get(HEAD..HEAD + length) {
                    let body = body.to_vec();
                    self.start += HEAD + length;
                    // Data may follow at once; the scratch buffer is not ours for long.
                    self.keep(scratch);
                    return Poll::Ready(Ok(Some(body)));
                }
            }
            if !ready!(self.poll_more(cx, scratch))? {
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// After the peer's end: ready with what comes, which may only be done or reset.
    fn poll_end(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<(), Failure>> {
        while !self.done {
            match frame::read_head(self.content(scratch)).map_err(|error| self.bad(error))? {
                Some((Kind::Done, _)) => {
                    self.start += HEAD;
                    self.done = true;
                }
                Some((Kind::Reset, _)) => return Poll::Ready(Err(self.was_reset())),
                Some((kind, length)) => return Poll::Ready(Err(self.bad(FrameError::Length { kind, length }))),
                None => match ready!(self.poll_more(cx, scratch)) {
                    Ok(true) => {}
                    Ok(false) => return Poll::Ready(Err(self.cut())),
                    Err(error) => return Poll::Ready(Err(self.broken(&error))),
                },
            }
        }
        self.keep(scratch);
        Poll::Ready(Ok(()))
    }

    pub(super) fn content<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        let storage = if self.kept.is_empty() { scratch } else { &self.kept };
        storage.get(self.start..self.end).unwrap_or_default()
    }

    /// Reads more content behind what there is, which is less than a frame's head or a control frame. `false` =
    /// the session has ended in order.
    pub(super) fn poll_more(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<io::Result<bool>> {
        // To the front of the scratch buffer with it.
        let length = self.end.saturating_sub(self.start);
        if self.kept.is_empty() {
            scratch.copy_within(self.start..self.end, 0);
        } else {
            let kept = self.kept.get(self.start..self.end).unwrap_or_default();
            scratch.get_mut(..length).unwrap_or_default().copy_from_slice(kept);
            self.kept = Vec::new();
        }
        (self.start, self.end) = (0, length);
        let read = self.secure.poll_content(cx, scratch.get_mut(length..).unwrap_or_default());
        match read {
            Poll::Ready(Ok(count)) => {
                self.end += count;
                Poll::Ready(Ok(count > 0))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                self.keep(scratch);
                Poll::Pending
            }
        }
    }

    fn was_reset(&mut self) -> Failure {
        (self.start, self.reset) = (self.start + HEAD, true);
        Failure::Reset("peer of the tunnel")
    }

    fn bad(&self, error: FrameError) -> Failure {
        Failure::Tunnel { with: self.with, reason: error.to_string() }
    }

    fn cut(&self) -> Failure {
        Failure::Tunnel { with: self.with, reason: "the connection ended without end of data".to_owned() }
    }

    fn broken(&self, error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => self.cut(),
            // How a peer says it that cannot say it in a frame.
            io::ErrorKind::ConnectionReset => Failure::Reset("peer of the tunnel"),
            _ => Failure::Tunnel { with: self.with, reason: error.to_string() },
        }
    }
}

pub(super) fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl Side for RawTunnel {
    fn poll_fill(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<bool, Failure>> {
        loop {
            if self.ended {
                return Poll::Ready(Ok(false));
            }
            if self.left > 0 && self.start < self.end {
                return Poll::Ready(Ok(true));
            }
            if self.left == 0 {
                match frame::read_head(self.content(scratch)).map_err(|error| self.bad(error))? {
                    Some((Kind::Data, length)) => {
                        (self.start, self.left) = (self.start + HEAD, length);
                        continue;
                    }
                    Some((Kind::End, _)) => {
                        (self.start, self.ended) = (self.start + HEAD, true);
                        // What follows is not data.
                        self.keep(scratch);
                        continue;
                    }
                    Some((Kind::Reset, _)) => return Poll::Ready(Err(self.was_reset())),
                    Some((kind, length)) => return Poll::Ready(Err(self.bad(FrameError::Length { kind, length }))),
                    None => {}
                }
            }
            match ready!(self.poll_more(cx, scratch)) {
                Ok(true) => {}
                Ok(false) => return Poll::Ready(Err(self.cut())),
                Err(error) => return Poll::Ready(Err(self.broken(&error))),
            }
        }
    }

    fn filled<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        let content = self.content(scratch);
        content.get(..self.left.min(content.len())).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        let count = count.min(self.left);
        (self.start, self.left) = (self.start + count, self.left - count);
    }

    fn keep(&mut self, scratch: &[u8]) {
        if self.start >= self.end {
            (self.kept, self.start, self.end) = (Vec::new(), 0, 0);
        } else if self.kept.is_empty() {
            self.kept = scratch.get(self.start..self.end).unwrap_or_default().to_vec();
            (self.start, self.end) = (0, self.kept.len());
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Failure>> {
        let sent = if self.owed > 0 {
            // A frame is begun: its bytes come first, without a head.
            let data = data.get(..self.owed.min(data.len())).unwrap_or_default();
            ready!(self.secure.poll_send(cx, &[], data))
        } else {
            let length = data.len().min(MAX_LENGTH);
            let sent = ready!(self.secure.poll_send(cx, &frame::head(Kind::Data, length), data));
            if sent.is_ok() {
                self.owed = length;
            }
            sent
        };
        Poll::Ready(match sent {
            Ok(count) => {
                self.owed = self.owed.saturating_sub(count);
                Ok(count)
            }
            Err(error) => Err(self.broken(&error)),
        })
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.secure.poll_sent(cx).map_err(|error| self.broken(&error))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        if !self.finished {
            ready!(self.secure.poll_send(cx, &frame::head(Kind::End, 0), &[])).map_err(|error| self.broken(&error))?;
            self.finished = true;
        }
        self.poll_flush(cx)
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Failure> {
        if self.ended && self.finished {
            // All data of both sides is where it belongs: whatever happens to the connection now is no loss.
            return Poll::Pending;
        }
        if self.ended {
            return match self.poll_end(cx, scratch) {
                Poll::Ready(Err(failure)) => Poll::Ready(failure),
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            };
        }
        ready!(self.secure.poll_error(cx));
        Poll::Ready(Failure::Reset("peer of the tunnel"))
    }
}
