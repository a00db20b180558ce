//! A request's body that can be sent again: what has passed is kept, up to a limit.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::body::BodyError;
use super::taken::Room;

/// The source and what has come of it.
struct Recorded {
    source: Incoming,
    frames: Vec<Bytes>,
    room: Room,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// More has come than is kept: it cannot be sent again.
    overflowed: bool,
    failed: bool,
    hint: SizeHint,
}

/// A body that passes on what comes and keeps it.
#[derive(Clone)]
pub(super) struct Recorder(Rc<RefCell<Recorded>>);

impl Recorder {
    /// Keeps as much as there is `room` for.
    pub(super) fn new(source: Incoming, room: Room) -> Self {
        let hint = source.size_hint();
        let ended = source.is_end_stream();
        let overflowed = !room.fits(hint.lower());
        Self(Rc::new(RefCell::new(Recorded {
            source,
            frames: Vec::new(),
            room,
            trailers: None,
            ended,
            overflowed,
            failed: false,
            hint,
        })))
    }

    /// The body from its beginning. To be asked for again only while [`Self::can_repeat`].
    pub(super) fn body(&self) -> Replay {
        Replay { recorded: Rc::clone(&self.0), next: 0, trailers_sent: false }
    }

    /// Whether nothing of it is lost.
    pub(super) fn can_repeat(&self) -> bool {
        let recorded = self.0.borrow();
        !recorded.overflowed && !recorded.failed
    }

    /// All of it, once it has come and was kept.
    pub(super) fn whole(&self) -> Option<Bytes> {
        let recorded = self.0.borrow();
        (recorded.ended && !recorded.overflowed).then(|| recorded.frames.concat().into())
    }
}

/// One passage of the body. Two never run at once: an attempt ends before the next begins.
pub(super) struct Replay {
    recorded: Rc<RefCell<Recorded>>,
    next: usize,
    trailers_sent: bool,
}

impl Replay {
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let recorded = &mut *self.recorded.borrow_mut();
        if let Some(frame) = recorded.frames.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(frame.clone()))));
        }
        if recorded.ended {
            let trailers = recorded.trailers.clone().filter(|_| !self.trailers_sent);
            self.trailers_sent = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let frame = match ready!(Pin::new(&mut recorded.source).poll_frame(cx)) {
            None => {
                recorded.ended = true;
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                recorded.failed = true;
                return Poll::Ready(Some(Err(error.into())));
            }
            Some(Ok(frame)) => frame,
        };
        match frame.into_data() {
            Ok(data) => {
                recorded.overflowed = recorded.overflowed || !recorded.room.take(data.len());
                if recorded.overflowed {
                    // What cannot be sent again as a whole need not be kept.
                    recorded.frames = Vec::new();
                    self.next = 0;
                } else {
                    recorded.frames.push(data.clone());
                    self.next += 1;
                }
                recorded.ended = recorded.source.is_end_stream();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Err(other) => {
                if let Ok(trailers) = other.into_trailers() {
                    recorded.trailers = Some(trailers.clone());
                    recorded.ended = true;
                    self.trailers_sent = true;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Poll::Ready(None)
            }
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let recorded = self.recorded.borrow();
        let trailers_left = recorded.trailers.is_some() && !self.trailers_sent;
        recorded.ended && self.next >= recorded.frames.len() && !trailers_left
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let recorded = self.recorded.borrow();
        // What hyper asks for before the first frame: the length of the whole.
        if self.next == 0 { recorded.hint } else { SizeHint::default() }
    }
}
