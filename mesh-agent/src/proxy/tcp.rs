//! A TCP connection as one side of a copy: FIN is end of data, RST is a reset.

use std::future::Future;
use std::io::{self, Read};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::copy::Side;
use super::failure::Failure;

/// After a minute of silence a connection between nodes is probed: the other node may be gone without a word.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Then four probes at this distance: a dead node is noticed after two minutes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;

/// Sends small writes at once: the applications have decided about coalescing already.
pub(super) fn no_delay(stream: &TcpStream) {
    // Fails only on a connection that is already reset; the first read says so.
    let _ = stream.set_nodelay(true);
}

/// Probes a silent peer on another node. Not for connections that stay within the pod: their kernel is ours.
pub(super) fn keep_alive(stream: &TcpStream) {
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    // As above.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// Closes with RST instead of FIN.
pub(super) fn reset(stream: TcpStream) {
    // As above: a connection that is already reset needs no linger.
    let _ = stream.set_zero_linger();
}

/// One TCP connection with what was read from it and not yet passed on.
pub(super) struct TcpSide {
    stream: Rc<TcpStream>,
    /// "client" or "server", for the reason in the log.
    role: &'static str,
    /// Bytes kept over a wake-up; empty (and without storage) unless the other side is blocked.
    kept: Vec<u8>,
    /// What is filled: of `kept` if that has any, else of the scratch buffer.
    start: usize,
    end: usize,
    ended: bool,
    /// Ready when the connection has an error. Made when it is first needed: most connections never need it.
    error: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl TcpSide {
    pub(super) fn new(stream: TcpStream, role: &'static str) -> Self {
        Self { stream: Rc::new(stream), role, kept: Vec::new(), start: 0, end: 0, ended: false, error: None }
    }

    /// Closes with RST.
    pub(super) fn reset(self) {
        // As above: a connection that is already reset needs no linger.
        let _ = self.stream.set_zero_linger();
    }

    fn broken(&self) -> Failure {
        Failure::Reset(self.role)
    }
}

/// Reads once. A short read empties the socket, so tokio is told to wait for the next event instead of making
/// another system call that only says so; end of data is remembered by tokio all the same.
pub(super) fn poll_read(stream: &TcpStream, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        let mut short = None;
        let read = stream.try_io(Interest::READABLE, || {
            let count = (&*SockRef::from(stream)).read(buffer)?;
            if count == 0 || count == buffer.len() {
                return Ok(count);
            }
            short = Some(count);
            Err(io::ErrorKind::WouldBlock.into())
        });
        match (short, read) {
            (Some(count), _) | (None, Ok(count)) => return Poll::Ready(Ok(count)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (None, Err(error)) => return Poll::Ready(Err(error)),
        }
    }
}

/// Writes once. A short write fills the socket: as in [`poll_read`], tokio then waits for the next event.
pub(super) fn poll_write(stream: &TcpStream, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        let mut short = None;
        let written = stream.try_io(Interest::WRITABLE, || {
            let count = SockRef::from(stream).send_with_flags(data, nix::libc::MSG_NOSIGNAL)?;
            if count == 0 || count == data.len() {
                return Ok(count);
            }
            short = Some(count);
            Err(io::ErrorKind::WouldBlock.into())
        });
        match (short, written) {
            (None, Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            (Some(count), _) | (None, Ok(count)) => return Poll::Ready(Ok(count)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (None, Err(error)) => return Poll::Ready(Err(error)),
        }
    }
}

/// Waits until `stream` has an error. tokio shows one to who neither reads nor writes only as a future.
pub(super) fn error_of(stream: &Rc<TcpStream>) -> Pin<Box<dyn Future<Output = ()>>> {
    let stream = Rc::clone(stream);
    Box::pin(async move {
        // An error of the wait itself means that the runtime is ending: nothing to report then.
        let _ = stream.ready(Interest::ERROR).await;
    })
}

impl Side for TcpSide {
    fn poll_fill(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<bool, Failure>> {
        if self.start < self.end {
            return Poll::Ready(Ok(true));
        }
        if self.ended {
            return Poll::Ready(Ok(false));
        }
        self.kept = Vec::new();
        match ready!(poll_read(&self.stream, cx, scratch)) {
            Ok(count) => (self.start, self.end) = (0, count),
            Err(_) => return Poll::Ready(Err(self.broken())),
        }
        self.ended = self.end == 0;
        Poll::Ready(Ok(!self.ended))
    }

    fn filled<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        let storage = if self.kept.is_empty() { scratch } else { &self.kept };
        storage.get(self.start..self.end).unwrap_or_default()
    }

    fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    fn keep(&mut self, scratch: &[u8]) {
        if self.kept.is_empty() {
            self.kept = self.filled(scratch).to_vec();
            (self.start, self.end) = (0, self.kept.len());
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Failure>> {
        poll_write(&self.stream, cx, data).map_err(|_| self.broken())
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let shut = SockRef::from(self.stream.as_ref()).shutdown(std::net::Shutdown::Write);
        Poll::Ready(shut.map_err(|_| self.broken()))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>, _scratch: &mut [u8]) -> Poll<Failure> {
        let error = self.error.get_or_insert_with(|| error_of(&self.stream));
        ready!(error.as_mut().poll(cx));
        Poll::Ready(self.broken())
    }
}
