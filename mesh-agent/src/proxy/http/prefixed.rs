//! A side of which some bytes were read already.

use std::task::{Context, Poll};

use bytes::{Buf, Bytes};

use crate::proxy::copy::Side;
use crate::proxy::failure::Failure;

/// Gives `first`, then what the side itself has.
pub(in crate::proxy) struct Prefixed<S> {
    first: Bytes,
    side: S,
}

impl<S> Prefixed<S> {
    /// `first` was read from `side`.
    pub(in crate::proxy) fn new(first: Bytes, side: S) -> Self {
        Self { first, side }
    }

    /// The side alone; what was read before and not consumed is lost.
    pub(in crate::proxy) fn into_inner(self) -> S {
        self.side
    }
}

impl<S: Side> Side for Prefixed<S> {
    fn poll_fill(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<bool, Failure>> {
        if self.first.is_empty() { self.side.poll_fill(cx, scratch) } else { Poll::Ready(Ok(true)) }
    }

    fn filled<'a>(&'a self, scratch: &'a [u8]) -> &'a [u8] {
        if self.first.is_empty() { self.side.filled(scratch) } else { &self.first }
    }

    fn consume(&mut self, count: usize) {
        if self.first.is_empty() {
            self.side.consume(count);
        } else {
            self.first.advance(count.min(self.first.len()));
        }
    }

    fn keep(&mut self, scratch: &[u8]) {
        // While there are first bytes the side itself has not been read.
        if self.first.is_empty() {
            self.side.keep(scratch);
        }
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
