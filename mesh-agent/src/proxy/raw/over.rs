//! How a tunnel that has failed is over on both sides, so that its connection can carry the next one.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use super::frame::{self, FrameError, HEAD, Kind};
use super::tunnel::{RawTunnel, invalid};
use crate::proxy::copy::Side;
use crate::proxy::scratch::Scratch;

/// How long the peer may take to agree that a tunnel was reset: it may be blocked by an application that does not
/// read, and learns of the reset then by that of the connection. Far above a round trip.
const AGREE: Duration = Duration::from_secs(1);

impl RawTunnel {
    /// Client: ends the tunnel as a failure; returns the connection if it is good for another.
    pub(in crate::proxy) async fn abandon(self, scratch: &Scratch) -> Option<Self> {
        self.agree(Kind::Done, scratch).await.filter(Self::is_quiet)
    }

    /// Server: ends the tunnel as a failure; returns the connection if the client may ask for another.
    pub(in crate::proxy) async fn refuse_more(self, scratch: &Scratch) -> Option<Self> {
        let mut tunnel = self.agree(Kind::Reset, scratch).await?;
        tunnel.done().await.is_ok().then_some(tunnel)
    }

    /// Says that the tunnel was reset and waits until the peer has said `wanted`. In the middle of a data frame, or
    /// with a peer that does not take the word or does not answer in time, the connection is reset instead.
    async fn agree(mut self, wanted: Kind, scratch: &Scratch) -> Option<Self> {
        let mut noop = Context::from_waker(Waker::noop());
        let said = self.owed == 0
            && matches!(self.secure.poll_send(&mut noop, &frame::head(Kind::Reset, 0), &[]), Poll::Ready(Ok(_)));
        if said {
            let over = poll_fn(|cx| self.poll_over(cx, wanted, &mut scratch.borrow_mut()));
            if let Ok(Ok(())) = tokio::time::timeout(AGREE, over).await {
                return Some(self);
            }
        }
        self.reset();
        None
    }

    /// After our reset: ready when the peer has said `wanted`. What else was on its way is skipped.
    fn poll_over(&mut self, cx: &mut Context<'_>, wanted: Kind, scratch: &mut [u8]) -> Poll<io::Result<()>> {
        if let Poll::Ready(Err(error)) = self.secure.poll_sent(cx) {
            return Poll::Ready(Err(error));
        }
        while !(self.done || self.reset && wanted == Kind::Reset) {
            let skipped = self.left.min(self.end.saturating_sub(self.start));
            self.consume(skipped);
            if self.left == 0
                && let Some((kind, length)) = frame::read_head(self.content(scratch)).map_err(invalid)?
            {
                self.start += HEAD;
                match kind {
                    Kind::Data => self.left = length,
                    Kind::End => {}
                    Kind::Reset => self.reset = true,
                    Kind::Done if wanted == Kind::Done => self.done = true,
                    Kind::Request | Kind::Reply | Kind::Done => {
                        return Poll::Ready(Err(invalid(FrameError::Length { kind, length })));
                    }
                }
                continue;
            }
            if !ready!(self.poll_more(cx, scratch))? {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        self.keep(scratch);
        ready!(self.secure.poll_sent(cx))?;
        Poll::Ready(Ok(()))
    }
}
