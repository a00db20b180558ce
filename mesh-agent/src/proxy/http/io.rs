//! A [`Side`] lent to hyper as its IO, and given back when hyper is done with the connection.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::sync::oneshot;

use crate::proxy::copy::{FIRST_CHUNK, Side};
use crate::proxy::failure::Failure;
use crate::proxy::scratch::Scratch;
use crate::proxy::secure::Buffers;
use crate::telemetry::record::ConnectionRecord;

/// A side that hyper has had, and what became of it.
pub(super) struct Returned<S> {
    /// The side itself, with what was read and not consumed.
    pub(super) side: S,
    /// Its data has ended.
    pub(super) ended: bool,
    /// Our end of data is sent.
    pub(super) shut: bool,
    /// The first failure.
    pub(super) failure: Option<Failure>,
}

/// What hyper reads and writes. Bytes pass through the worker's scratch buffer, so an idle connection holds none.
pub(super) struct Io<S> {
    state: Rc<RefCell<Returned<S>>>,
    buffers: Rc<Buffers>,
    /// Counts what a client sends and gets.
    record: Option<Rc<ConnectionRecord>>,
    /// Dropped with this: tells the lender.
    _returned: oneshot::Sender<()>,
}

/// Gets the side back.
pub(super) struct Lender<S> {
    state: Rc<RefCell<Returned<S>>>,
    returned: oneshot::Receiver<()>,
}

/// Lends `side` to hyper.
pub(super) fn lend<S>(side: S, buffers: &Rc<Buffers>, record: Option<Rc<ConnectionRecord>>) -> (Io<S>, Lender<S>) {
    let (sender, returned) = oneshot::channel();
    let state = Rc::new(RefCell::new(Returned { side, ended: false, shut: false, failure: None }));
    let io = Io { state: Rc::clone(&state), buffers: Rc::clone(buffers), record, _returned: sender };
    (io, Lender { state, returned })
}

impl<S> Lender<S> {
    /// Waits until hyper has dropped its end; `None` cannot happen then, and is taken for a broken connection.
    pub(super) async fn take_back(self) -> Option<Returned<S>> {
        // Nothing is ever sent: the sender's end is what is waited for.
        let _ = self.returned.await;
        Rc::into_inner(self.state).map(RefCell::into_inner)
    }
}

impl<S: Side> Returned<S> {
    fn fail(&mut self, failure: Failure) -> io::Error {
        let error = io::Error::new(io::ErrorKind::ConnectionReset, failure.to_string());
        self.failure.get_or_insert(failure);
        error
    }

    /// Sends end of data, if that is not sent yet.
    pub(super) fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(self.side.poll_finish(cx)).map_err(|failure| self.fail(failure))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and forgets what still comes, up to `limit` bytes. Ready with whether the data has ended.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, scratch: &Scratch, limit: &mut usize) -> Poll<bool> {
        let mut scratch = scratch.borrow_mut();
        while !self.ended {
            match ready!(self.side.poll_fill(cx, &mut scratch)) {
                Ok(true) => {
                    let count = self.side.filled(&scratch).len();
                    self.side.consume(count);
                    *limit = limit.saturating_sub(count);
                    if *limit == 0 {
                        self.side.keep(&scratch);
                        return Poll::Ready(false);
                    }
                }
                Ok(false) => self.ended = true,
                Err(failure) => {
                    self.side.keep(&scratch);
                    self.fail(failure);
                    return Poll::Ready(false);
                }
            }
        }
        Poll::Ready(true)
    }
}

impl<S: Side> Read for Io<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let mut scratch = self.buffers.scratch.borrow_mut();
        // A side may need room for a whole record, whatever hyper has room for.
        let most = scratch.len().min(FIRST_CHUNK);
        let scratch = scratch.get_mut(..most).unwrap_or_default();
        let state = &mut *self.state.borrow_mut();
        match ready!(state.side.poll_fill(cx, scratch)) {
            Ok(true) => {}
            Ok(false) => {
                state.ended = true;
                return Poll::Ready(Ok(()));
            }
            Err(failure) => {
                state.side.keep(scratch);
                return Poll::Ready(Err(state.fail(failure)));
            }
        }
        let filled = state.side.filled(scratch);
        let count = filled.len().min(buf.remaining());
        buf.put_slice(filled.get(..count).unwrap_or_default());
        state.side.consume(count);
        state.side.keep(scratch);
        if let Some(record) = &self.record {
            record.meter().sent(count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Side> Write for Io<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let state = &mut *self.state.borrow_mut();
        let count = ready!(state.side.poll_write(cx, data)).map_err(|failure| state.fail(failure))?;
        if let Some(record) = &self.record {
            record.meter().received(count);
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.state.borrow_mut();
        state.side.poll_flush(cx).map_err(|failure| state.fail(failure))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.state.borrow_mut().poll_finish(cx)
    }
}
