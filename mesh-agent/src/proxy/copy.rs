//! Bytes in both directions at once, in one task, without a buffer of the connection's own.
//!
//! All connections of a worker share one scratch buffer: within one wake-up bytes are read into it and written
//! out of it. Only what the receiver does not take at once is kept, and while it is kept nothing more is read
//! (back-pressure end to end). So an idle connection holds no buffer, and a blocked one holds one chunk.
//!
//! End of data is passed on as end of data, a reset as a reset; there is no timer on an application's silence.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use super::failure::Failure;
use super::recheck::Switch;
use super::scratch::Scratch;
use crate::telemetry::record::Meter;

/// The scratch buffer of a worker: the most that is read at once; 8 full TLS records. Small enough for a core's
/// second cache, so that what was read is still there when it is sealed or written.
pub(super) const SCRATCH: usize = 128 * 1024;
/// The first reads of a connection ask for this much: more than a TLS record of the greatest length.
pub(super) const FIRST_CHUNK: usize = 32 * 1024;
/// What one direction may move in one turn before others get theirs: about 0.2 ms at 5 GB/s.
const TURN: usize = 1024 * 1024;

/// One end of a proxied connection, both directions of it.
pub(super) trait Side {
    /// Waits for bytes; reads at most `scratch.len()` of them (never less than [`FIRST_CHUNK`]), into `scratch` or into
    /// storage of its own. Ready
    /// with `true` = [`Self::filled`] is not empty, `false` = end of data.
    fn poll_fill(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<bool, Failure>>;

    /// What is read and not yet consumed. `scratch` is the one given to [`Self::poll_fill`], untouched since.
    fn filled<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8];

    /// Takes `count` bytes off the front of [`Self::filled`].
    fn consume(&mut self, count: usize);

    /// The scratch buffer is about to be used by others: keeps what is not consumed. To be called by whoever has
    /// called [`Self::poll_fill`] and lets go of the buffer, also where [`Self::filled`] is empty: a tunnel may have
    /// opened the next frame already.
    fn keep(&mut self, scratch: &[u8]);

    /// Takes a prefix of `data` (not empty) and returns its length, at least 1.
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Failure>>;

    /// Sends what [`Self::poll_write`] has taken and not sent.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>>;

    /// Sends what is pending, then end of data.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>>;

    /// While it is not read, because its data has ended or the other side is blocked: ready when its other end
    /// has reset the connection. Leaves nothing in `scratch`.
    fn poll_broken(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Failure>;
}

/// One direction's progress.
#[derive(Debug)]
struct Direction {
    state: State,
    /// How much to read at once: small first, more under bulk.
    chunk: usize,
    /// The receiver does not take more, so the sender is not read.
    blocked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Flowing,
    Finishing,
    Finished,
}

impl Direction {
    fn new() -> Self {
        Self { state: State::Flowing, chunk: FIRST_CHUNK, blocked: false }
    }

    fn is_not_reading(&self) -> bool {
        self.blocked || self.state != State::Flowing
    }

    /// Moves what can be moved. Ready when this direction has ended in order.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
        scratch: &mut [u8],
        moved: impl Fn(usize),
    ) -> Poll<Result<(), Failure>> {
        let mut turn = 0;
        while self.state == State::Flowing {
            let limit = self.chunk.min(scratch.len());
            let scratch = scratch.get_mut(..limit).unwrap_or_default();
            match from.poll_fill(cx, scratch) {
                Poll::Pending => {
                    return match to.poll_flush(cx) {
                        Poll::Ready(Err(failure)) => Poll::Ready(Err(failure)),
                        _ => Poll::Pending,
                    };
                }
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Ready(Ok(false)) => self.state = State::Finishing,
                Poll::Ready(Ok(true)) => {
                    let (count, written) = drain(cx, from, to, scratch);
                    moved(count);
                    turn += count;
                    if turn >= self.chunk {
                        self.chunk = self.chunk.saturating_mul(4).min(SCRATCH);
                    }
                    self.blocked = written.is_pending();
                    ready!(written)?;
                    if turn >= TURN {
                        from.keep(scratch);
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                }
            }
        }
        if self.state == State::Finishing {
            ready!(to.poll_finish(cx))?;
            self.state = State::Finished;
        }
        Poll::Ready(Ok(()))
    }
}

/// Writes what `from` has; what `to` does not take now is kept. Returns how many bytes went.
fn drain(
    cx: &mut Context<'_>,
    from: &mut impl Side,
    to: &mut impl Side,
    scratch: &[u8],
) -> (usize, Poll<Result<(), Failure>>) {
    let mut moved = 0;
    loop {
        let data = from.filled(scratch);
        if data.is_empty() {
            return (moved, Poll::Ready(Ok(())));
        }
        match to.poll_write(cx, data) {
            Poll::Ready(Ok(count)) => {
                from.consume(count);
                moved += count;
            }
            Poll::Ready(Err(failure)) => return (moved, Poll::Ready(Err(failure))),
            Poll::Pending => {
                from.keep(scratch);
                return (moved, Poll::Pending);
            }
        }
    }
}

/// Copies between `client` and `server` until both directions have ended in order, one side fails, or `switch`
/// is tripped. On an error both sides are as they were: the caller resets them.
pub(super) async fn both_ways(
    client: &mut impl Side,
    server: &mut impl Side,
    scratch: &Scratch,
    switch: &Switch,
    meter: &Meter,
) -> Result<(), Failure> {
    let mut directions = [Direction::new(), Direction::new()];
    poll_fn(|cx| {
        if let Poll::Ready(ending) = switch.poll(cx) {
            return Poll::Ready(Err(Failure::Ended(ending)));
        }
        let mut scratch = scratch.borrow_mut();
        let turn = turn(cx, &mut directions, client, server, &mut scratch, meter);
        if let Poll::Ready(Err(_)) = turn {
            // What a side is in the middle of says whether it can carry another connection.
            client.keep(&scratch);
            server.keep(&scratch);
        }
        turn
    })
    .await
}

/// Moves what can be moved both ways. Ready when both directions have ended in order.
fn turn(
    cx: &mut Context<'_>,
    [up, down]: &mut [Direction; 2],
    client: &mut impl Side,
    server: &mut impl Side,
    scratch: &mut [u8],
    meter: &Meter,
) -> Poll<Result<(), Failure>> {
    let up_done = up.poll(cx, client, server, scratch, |n| meter.sent(n))?.is_ready();
    let down_done = down.poll(cx, server, client, scratch, |n| meter.received(n))?.is_ready();
    if up_done && down_done {
        return Poll::Ready(Ok(()));
    }
    // A side that is not read shows its reset to nobody: it has to be looked for.
    if up.is_not_reading()
        && let Poll::Ready(failure) = client.poll_broken(cx, scratch)
    {
        return Poll::Ready(Err(failure));
    }
    if down.is_not_reading()
        && let Poll::Ready(failure) = server.poll_broken(cx, scratch)
    {
        return Poll::Ready(Err(failure));
    }
    Poll::Pending
}
