//! The part of a request's trace that lies at this node: the context that it came with, the spans that are made of it,
//! and the context that it goes on with. Decision 0008.
//!
//! Without a collector nothing is recorded and no header is touched; a context that came is read for the log alone.

pub mod context;
pub mod export;
mod otlp;
pub mod queue;
mod span;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, StatusCode};

pub use self::export::Endpoint;
pub use self::span::{Kind, Request, Span};
use context::{Context, Form};
use queue::Queue;

/// Where spans go, and which requests have them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The collector.
    pub endpoint: Endpoint,
    /// Of requests that come without a decision.
    pub ratio: Ratio,
}

/// A share of all traces, decided by their ids: every node decides alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(u64);

impl Ratio {
    /// `share` between 0 and 1; `None` for anything else.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of all numbers, to within what a float can say"
    )]
    pub fn of(share: f64) -> Option<Self> {
        // A cast from a float stays within the type: 1 is its greatest value.
        (0.0..=1.0).contains(&share).then_some(Self((share * u64::MAX as f64) as u64))
    }

    /// Whether a trace is among them: by its last 64 bits, which W3C wants to be random.
    #[expect(clippy::cast_possible_truncation, reason = "the last 64 bits are meant")]
    fn takes(self, trace: u128) -> bool {
        let random = trace as u64;
        self.0 == u64::MAX || random < self.0
    }
}

/// Makes the spans of the data path.
#[derive(Debug)]
pub struct Tracer {
    ratio: Ratio,
    queue: Arc<Queue>,
}

/// A request's trace at this node.
#[derive(Debug)]
pub struct Traced {
    /// The span that the request was sent from, if one is known.
    parent: Option<Context>,
    /// The trace, and the form it goes on in.
    trace: Context,
    /// None of it is recorded.
    spans: Option<RefCell<Vec<Attempt>>>,
}

/// A span under way: a request was sent on once.
#[derive(Debug)]
struct Attempt {
    id: u64,
    began: Instant,
    /// When it was over, and what came of it; unless it is the one that the request ends with.
    over: Cell<Option<(Instant, Option<StatusCode>)>>,
}

impl Tracer {
    /// Decides on `ratio` of the requests that come without a decision.
    #[must_use]
    pub fn new(ratio: Ratio, queue: Arc<Queue>) -> Self {
        Self { ratio, queue }
    }

    /// Where its spans go.
    #[must_use]
    pub fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// The trace of a request that came with `parent`.
    #[must_use]
    pub fn begin(&self, parent: Option<Context>) -> Traced {
        let mut trace = parent.unwrap_or_else(|| Context {
            trace: rand::random_range(1..=u128::MAX),
            span: rand::random_range(1..=u64::MAX),
            sampled: None,
            form: Form::W3c,
        });
        let sampled = trace.sampled.unwrap_or_else(|| self.ratio.takes(trace.trace));
        trace.sampled = Some(sampled);
        Traced { parent, trace, spans: sampled.then(RefCell::default) }
    }

    /// Hands the spans of a request that is over to the exporter; `request` is what they say of it.
    pub fn end(&self, traced: &Traced, began: Instant, request: impl FnOnce() -> Request) {
        let Some(spans) = &traced.spans else { return };
        let (now, ended) = (SystemTime::now(), Instant::now());
        let at = |moment: Instant| nanoseconds(now, ended.saturating_duration_since(moment));
        let mut spans = spans.borrow_mut();
        if spans.is_empty() {
            // Answered before it was sent anywhere.
            spans.push(Attempt::new(began));
        }
        let request = Arc::new(request());
        let of = |(number, attempt): (usize, &Attempt)| {
            let (over, early) = match attempt.over.get() {
                Some((over, status)) => (over, Some(status)),
                None => (ended, None),
            };
            Span {
                trace: traced.trace.trace,
                id: attempt.id,
                parent: traced.parent.map(|parent| parent.span),
                // Before its first attempt a request waits for the agent: that is in its span.
                start_ns: at(if number == 0 { began } else { attempt.began }),
                end_ns: at(over),
                number,
                early,
                request: Arc::clone(&request),
            }
        };
        self.queue.push(spans.iter().enumerate().map(of));
    }
}

impl Traced {
    /// Its trace.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.trace
    }

    /// The request is sent on with these headers: its next span begins. Whether a `tracestate` among them is another
    /// trace's: what could not be continued has none (W3C §3.3).
    pub fn sends(&self, headers: &mut HeaderMap) -> bool {
        let mut context = self.trace;
        match &self.spans {
            Some(spans) => {
                let attempt = Attempt::new(Instant::now());
                context.span = attempt.id;
                spans.borrow_mut().push(attempt);
            }
            // Somebody else's decision is passed on as it came; ours is told, so that nobody decides anew.
            None if self.parent.is_some() => return false,
            None => {}
        }
        context.write(headers);
        self.parent.is_none()
    }

    /// The latest span is over, and the request goes on without it.
    pub fn sends_again(&self, status: Option<StatusCode>) {
        if let Some(spans) = &self.spans
            && let Some(attempt) = spans.borrow().last()
        {
            attempt.over.set(Some((Instant::now(), status)));
        }
    }
}

impl Attempt {
    fn new(began: Instant) -> Self {
        Self { id: rand::random_range(1..=u64::MAX), began, over: Cell::default() }
    }
}

/// Nanoseconds since 1970 of the moment `before` now.
fn nanoseconds(now: SystemTime, before: Duration) -> u64 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().saturating_sub(before);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
