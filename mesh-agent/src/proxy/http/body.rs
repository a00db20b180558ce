//! Bodies on their way through: as they come, with what they keep alive until they end.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http::{StatusCode, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::record::Watch;
use super::replay::Replay;

/// Why a body ends early; a peer sees a reset, with the code of an HTTP/2 error inside.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A message's body.
pub(super) struct Body {
    content: Content,
    /// It begins when this is ready.
    gate: Option<Pin<Box<dyn Future<Output = ()>>>>,
    /// When it must have ended.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Takes note of what passes.
    watch: Option<Watch>,
    /// Dropped with the body, e.g. the endpoint's share.
    _held: Option<Box<dyn Any>>,
}

enum Content {
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    Replay(Replay),
    /// Nothing comes, and the head says how much it would be.
    Told(u64),
}

impl Body {
    /// No content.
    pub(super) fn empty() -> Self {
        Self { content: Content::Empty, gate: None, deadline: None, watch: None, _held: None }
    }

    /// Content that is known whole.
    pub(super) fn full(content: Bytes) -> Self {
        Self { content: Content::Full(content), ..Self::empty() }
    }

    /// What is still coming.
    pub(super) fn incoming(incoming: Incoming) -> Self {
        Self { content: Content::Incoming(incoming), ..Self::empty() }
    }

    /// What follows the head of an answer. That of 304 may tell the length of what it does not bring (RFC 9110 §8.6),
    /// which hyper writes to a client of HTTP/1 only for a body that would be as long.
    pub(super) fn answer(head: &Parts, incoming: Incoming) -> Self {
        let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        match length {
            Some(length) if head.status == StatusCode::NOT_MODIFIED && head.version < Version::HTTP_2 => {
                Self { content: Content::Told(length), ..Self::empty() }
            }
            _ => Self::incoming(incoming),
        }
    }

    /// What is still coming, once more from the beginning.
    pub(super) fn replay(replay: Replay) -> Self {
        Self { content: Content::Replay(replay), ..Self::empty() }
    }

    /// Begins when `gate` is ready.
    pub(super) fn after(mut self, gate: impl Future<Output = ()> + 'static) -> Self {
        self.gate = Some(Box::pin(gate));
        self
    }

    /// Tells `watch` of everything that comes of it.
    pub(super) fn watched(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Keeps `held` until it has ended, and fails at `deadline`.
    pub(super) fn holding(mut self, held: impl Any, deadline: Option<Instant>) -> Self {
        self._held = Some(Box::new(held));
        self.deadline = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        self
    }
}

/// The rule's time was over before the answer's end.
#[derive(Debug, thiserror::Error)]
#[error("the answer did not end in time")]
pub(super) struct Late;

impl Body {
    fn poll_content(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(Box::new(Late))));
        }
        if let Some(gate) = &mut self.gate {
            ready!(gate.as_mut().poll(cx));
            self.gate = None;
        }
        let frame = match &mut self.content {
            Content::Empty | Content::Told(_) => None,
            Content::Full(content) => {
                let content = std::mem::take(content);
                self.content = Content::Empty;
                (!content.is_empty()).then(|| Ok(Frame::data(content)))
            }
            Content::Incoming(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| frame.map_err(Into::into))
            }
            Content::Replay(replay) => ready!(replay.poll_frame(cx)),
        };
        if frame.is_none() {
            self._held = None;
        }
        Poll::Ready(frame)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.poll_content(cx));
        if let Some(watch) = self.watch.take() {
            // hyper asks no more of a body that says so of itself.
            self.watch = watch.saw(frame.as_ref(), self.is_end_stream());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty => true,
            Content::Told(_) => false,
            Content::Full(content) => content.is_empty(),
            Content::Incoming(incoming) => incoming.is_end_stream(),
            Content::Replay(replay) => replay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            // Of a length that is told hyper would make a header, in HTTP/2, that the client has not sent.
            Content::Empty => SizeHint::default(),
            Content::Told(length) => SizeHint::with_exact(*length),
            Content::Full(content) => SizeHint::with_exact(content.len() as u64),
            Content::Incoming(incoming) => incoming.size_hint(),
            Content::Replay(replay) => replay.size_hint(),
        }
    }
}

/// The deadline `after` a moment, where there is a limit.
pub(super) fn deadline(from: Instant, after: Option<Duration>) -> Option<Instant> {
    after.and_then(|after| from.checked_add(after))
}
