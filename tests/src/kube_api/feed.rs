//! The bodies of responses: in one piece, or the lines of a watch as they come.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Frame};
use tokio::sync::mpsc;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval_at, sleep_until};

use super::server::Shared;
use super::watch::Watch;

/// How often a watch that wants bookmarks gets one.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A last bookmark comes this long before a watch ends.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);
/// Pieces on their way to a client that reads slowly.
const PIECES: usize = 16;

/// A response's body.
pub type Body = UnsyncBoxBody<Bytes, Cut>;

/// The watch was cut.
#[derive(Debug)]
pub struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("cut by the test")
    }
}

impl std::error::Error for Cut {}

/// A body in one piece.
#[must_use]
pub fn whole(text: Bytes) -> Body {
    let never = |error: Infallible| match error {};
    Full::new(text).map_err(never).boxed_unsync()
}

/// Starts to feed a watch.
pub fn start(shared: Arc<Shared>, watch: Watch) -> Body {
    let (sender, receiver) = mpsc::channel(PIECES);
    // Counted from here: whatever changes or is cut from now on is seen.
    let (changes, cuts) = (shared.changes(), shared.watch_cuts());
    if let Some(token) = &watch.token {
        shared.knobs().watched.insert((token.clone(), watch.resource()));
    }
    tokio::spawn(async move {
        let mut feed = Feed { shared, watch, sender };
        // The receiver is gone, or the watch has ended: both close the channel.
        let _ = feed.run(changes, cuts).await;
    });
    Pieces(receiver).boxed_unsync()
}

struct Feed {
    shared: Arc<Shared>,
    watch: Watch,
    sender: mpsc::Sender<Result<Bytes, Cut>>,
}

/// The client has gone.
struct Gone;

type Changes = tokio::sync::watch::Receiver<u64>;

impl Feed {
    async fn run(&mut self, mut changes: Changes, mut cuts: Changes) -> Result<(), Gone> {
        let end = Instant::now() + self.watch.timeout;
        let mut bookmarks = interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let last_bookmark = sleep_until(end.checked_sub(LAST_BOOKMARK).unwrap_or(end).max(Instant::now()));
        let mut last_bookmark = std::pin::pin!(last_bookmark);
        let mut last_sent = false;
        let first = std::mem::take(&mut self.watch.first);
        self.send(first).await?;
        loop {
            changes.mark_unchanged();
            let stale = self.shared.knobs().is_stale(self.watch.token.as_deref());
            if !stale {
                let lines = self.watch.lines(&self.shared.cluster());
                match lines {
                    Ok(lines) => self.send(lines).await?,
                    Err(last) => return self.send(vec![last]).await,
                }
            }
            let told = self.watch.bookmarks && !stale;
            tokio::select! {
                changed = changes.changed() => changed.map_err(|_| Gone)?,
                _ = cuts.changed() => return self.sender.send(Err(Cut)).await.map_err(|_| Gone),
                () = sleep_until(end) => return Ok(()),
                () = self.sender.closed() => return Err(Gone),
                _ = bookmarks.tick(), if told => self.send(vec![self.watch.bookmark()]).await?,
                () = &mut last_bookmark, if told && !last_sent => {
                    last_sent = true;
                    self.send(vec![self.watch.bookmark()]).await?;
                }
            }
        }
    }

    async fn send(&self, lines: Vec<Vec<u8>>) -> Result<(), Gone> {
        if lines.is_empty() {
            return Ok(());
        }
        self.sender.send(Ok(Bytes::from(lines.concat()))).await.map_err(|_| Gone)
    }
}

struct Pieces(mpsc::Receiver<Result<Bytes, Cut>>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
