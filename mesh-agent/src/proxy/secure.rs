//! A TCP connection with its TLS session: content in, records out, and back.
//!
//! Records are opened out of, and sealed into, a buffer that all connections of a worker share; only what the
//! socket does not take, and the beginning of a record whose rest has not come, is kept by the connection. So an
//! idle connection holds its keys and nothing else.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::copy::SCRATCH;
use super::scratch::Scratch;
use super::tcp;
use crate::tls::Session;
use crate::tls::records::{MAX_RECORD, OVERHEAD, RecordError, Records};

/// Room for a full scratch buffer's content as records, with a frame's head and a key update.
const SEALED: usize = SCRATCH + (SCRATCH >> 14) * OVERHEAD + 1024;
/// What a stream reader (HTTP/2) gets opened at once: what it does not take is kept by the connection.
const STREAM_CHUNK: usize = 4 * MAX_RECORD;

/// A slice that is joined with the next one to make one record; it is copied for that.
const SMALL_HEAD: usize = 4 << 10;

/// The buffers of a worker. Each is borrowed within one poll only.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Content.
    pub(super) scratch: Scratch,
    /// Records.
    sealed: Scratch,
}

impl Buffers {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self { scratch: Scratch::new(SCRATCH), sealed: Scratch::new(SEALED) })
    }
}

/// An established session over TCP.
pub(super) struct Secure {
    stream: Rc<TcpStream>,
    records: Records,
    buffers: Rc<Buffers>,
    /// Content opened before anybody asked, from `taken` on.
    opened: Vec<u8>,
    taken: usize,
    /// The beginning of a record.
    incoming: Vec<u8>,
    /// Records that the socket has not taken, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    /// The peer has ended its direction in order.
    closed: bool,
    /// Ready when the connection has an error. Made when it is first needed.
    error: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl Secure {
    pub(super) fn new(stream: TcpStream, session: Session, buffers: &Rc<Buffers>) -> Self {
        Self {
            stream: Rc::new(stream),
            records: session.records,
            buffers: Rc::clone(buffers),
            opened: session.opened,
            taken: 0,
            incoming: session.sealed,
            outgoing: Vec::new(),
            sent: 0,
            closed: session.closed,
            error: None,
        }
    }

    /// Reads content into `output`, which must have room for a record of any length. 0 = the peer has ended the
    /// session in order; a mere end of the connection is `UnexpectedEof`.
    pub(super) fn poll_content(&mut self, cx: &mut Context<'_>, output: &mut [u8]) -> Poll<io::Result<usize>> {
        if !self.opened.is_empty() {
            return Poll::Ready(Ok(self.take_opened(output)));
        }
        let buffers = Rc::clone(&self.buffers);
        let mut sealed = buffers.sealed.borrow_mut();
        while !self.closed {
            let kept = self.incoming.len();
            // Content is shorter than its records: no more of these than output may hold of that.
            let limit = output.len().min(sealed.len());
            let Some((front, rest)) = sealed.get_mut(..limit).and_then(|sealed| sealed.split_at_mut_checked(kept))
            else {
                return Poll::Ready(Err(protocol(RecordError::Internal("no room for a record"))));
            };
            if rest.is_empty() {
                return Poll::Ready(Err(protocol(RecordError::Internal("no room for a record"))));
            }
            front.copy_from_slice(&self.incoming);
            // What came with the handshake may hold whole records: they are opened before more is waited for.
            let whole = self.records_are_whole();
            let count = if whole { 0 } else { ready!(tcp::poll_read(&self.stream, cx, rest))? };
            if count == 0 && !whole {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let input = sealed.get(..kept + count).unwrap_or_default();
            let opened = self.records.open(input, output).map_err(protocol)?;
            self.closed = opened.closed;
            let left = input.get(opened.read..).unwrap_or_default();
            if left.is_empty() {
                self.incoming = Vec::new();
            } else {
                self.incoming.clear();
                self.incoming.extend_from_slice(left);
            }
            if opened.written > 0 {
                return Poll::Ready(Ok(opened.written));
            }
        }
        Poll::Ready(Ok(0))
    }

    /// Moves as much of `opened` as fits; gives its storage back when it is empty.
    fn take_opened(&mut self, output: &mut [u8]) -> usize {
        let left = self.opened.get(self.taken..).unwrap_or_default();
        let count = left.len().min(output.len());
        let (Some(source), Some(target)) = (left.get(..count), output.get_mut(..count)) else { return 0 };
        target.copy_from_slice(source);
        self.taken += count;
        if self.taken >= self.opened.len() {
            (self.opened, self.taken) = (Vec::new(), 0);
        }
        count
    }

    fn records_are_whole(&self) -> bool {
        match *self.incoming {
            [_, _, _, high, low, ref body @ ..] => body.len() >= usize::from(u16::from_be_bytes([high, low])),
            _ => false,
        }
    }

    /// Sends `head` and a prefix of `data` whose length it returns; all of it is on its way when
    /// [`Self::poll_sent`] is ready. Nothing is taken while earlier records wait.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, head: &[u8], data: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(cx))?;
        ready!(self.stream.poll_write_ready(cx))?;
        let buffers = Rc::clone(&self.buffers);
        let mut sealed = buffers.sealed.borrow_mut();
        let done = self.records.seal(head, data, &mut sealed).map_err(protocol)?;
        let records = sealed.get(..done.written).unwrap_or_default();
        let sent = match tcp::poll_write(&self.stream, cx, records) {
            Poll::Ready(sent) => sent?,
            Poll::Pending => 0,
        };
        let left = records.get(sent..).unwrap_or_default();
        if !left.is_empty() {
            self.outgoing.extend_from_slice(left);
        }
        Poll::Ready(Ok(done.read))
    }

    /// Ready when everything that was taken has been handed to the kernel.
    pub(super) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left) = self.outgoing.get(self.sent..).filter(|left| !left.is_empty()) {
            self.sent += ready!(tcp::poll_write(&self.stream, cx, left))?;
        }
        if self.sent > 0 {
            (self.outgoing, self.sent) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the connection has an error although nobody reads.
    pub(super) fn poll_error(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let stream = &self.stream;
        self.error.get_or_insert_with(|| tcp::error_of(stream)).as_mut().poll(cx)
    }

    /// Whether nothing has come, not even an end: what a pooled connection must be. Reads nothing.
    pub(super) fn is_quiet(&self) -> bool {
        let silent = self.stream.try_io(tokio::io::Interest::READABLE, || {
            let mut byte = [std::mem::MaybeUninit::uninit()];
            socket2::SockRef::from(self.stream.as_ref()).peek(&mut byte)
        });
        let silent = silent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        silent && self.opened.is_empty() && self.incoming.is_empty() && self.outgoing.is_empty()
    }

    /// Resets the connection.
    pub(super) fn reset(self) {
        // Fails only on a connection that is already reset.
        let _ = self.stream.set_zero_linger();
    }

    /// Ends the session in order, as far as the socket takes it at once.
    pub(super) fn close(mut self) {
        let mut alert = [0; 64];
        if let (true, Ok(length)) = (self.outgoing.is_empty(), self.records.seal_close(&mut alert)) {
            // A peer that is gone needs no goodbye.
            let _ = self.stream.try_write(alert.get(..length).unwrap_or_default());
        }
    }
}

fn protocol(error: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for Secure {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.opened.is_empty() {
            let buffers = Rc::clone(&this.buffers);
            let mut scratch = buffers.scratch.borrow_mut();
            let output = scratch.get_mut(..STREAM_CHUNK).unwrap_or_default();
            let count = ready!(this.poll_content(cx, output))?;
            let content = output.get(..count).unwrap_or_default();
            let (now, later) = content.split_at(count.min(buffer.remaining()));
            buffer.put_slice(now);
            this.opened.extend_from_slice(later);
            return Poll::Ready(Ok(()));
        }
        let count = this.take_opened(buffer.initialize_unfilled());
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Secure {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, &[], data)
    }

    /// HTTP/2 writes a frame's head and its payload as two slices: one record, without joining them first.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut slices = slices.iter().filter(|slice| !slice.is_empty());
        match (slices.next(), slices.next()) {
            (Some(head), Some(data)) if head.len() <= SMALL_HEAD => {
                let sent = ready!(self.get_mut().poll_send(cx, head, data))?;
                Poll::Ready(Ok(head.len() + sent))
            }
            (Some(data), _) => self.get_mut().poll_send(cx, &[], data),
            (None, _) => Poll::Ready(Ok(0)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_sent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_sent(cx))?;
        let mut alert = [0; 64];
        let length = this.records.seal_close(&mut alert).map_err(protocol)?;
        // The last word of a connection that is closed either way.
        let _ = this.stream.try_write(alert.get(..length).unwrap_or_default());
        Poll::Ready(socket2::SockRef::from(this.stream.as_ref()).shutdown(std::net::Shutdown::Write))
    }
}
