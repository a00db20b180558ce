//! The side of the agent that runs: yields to a successor, or takes the node back from one that failed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::io::BufReader;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Answer, PROTOCOL, SOCKET_NAME, Word, hear, say};
use crate::admin;
use crate::agent::duties::Duties;
use crate::proxy::Proxy;

/// How long a successor may take from `Yielded` to `Done`: 5,000 pods at some milliseconds each, on a busy node.
const MANDATE: Duration = Duration::from_secs(60);
/// Nobody has been accepted for this long: nothing is on its way to the listeners any more. SYN-ACKs that were lost
/// are repeated after 1 and 3 s.
const QUIET: Duration = Duration::from_secs(5);
/// A client that dials the old listeners for ever (by their own ports, past the kernel half) must not keep them up.
const LONGEST: Duration = Duration::from_secs(60);
/// How often the listeners are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// How a conversation ended.
enum End {
    /// This agent is in charge again.
    TakenBack,
    /// The successor is in charge.
    Succeeded,
}

/// Where successors call.
///
/// # Errors
/// When the socket cannot be made.
pub(in crate::agent) fn listen(state_dir: &Path) -> Result<UnixListener> {
    Ok(admin::private_socket(state_dir, SOCKET_NAME)?)
}

/// Serves successors until one is in charge.
///
/// # Errors
/// When the socket cannot be made again after one that failed.
pub(in crate::agent) async fn serve(mut listener: UnixListener, duties: Duties) -> Result<()> {
    let state_dir = duties.config.state_dir.clone();
    let duties = Arc::new(Mutex::new(duties));
    let (ended, mut ends) = mpsc::channel(1);
    // Dropped with this future: no conversation goes on when the agent stops.
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    conversations.spawn(conversation(stream, Arc::clone(&duties), ended.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "the handover socket could not accept a connection");
                    tokio::time::sleep(LOOK).await;
                }
            },
            end = ends.recv() => match end {
                Some(End::Succeeded) => return Ok(()),
                // The one that failed may have put its own socket in this one's place.
                Some(End::TakenBack) => listener = listen(&state_dir)?,
                None => {}
            },
            Some(_) = conversations.join_next() => {}
        }
    }
}

async fn conversation(stream: UnixStream, duties: Arc<Mutex<Duties>>, ended: mpsc::Sender<End>) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    let word = hear(&mut from).await;
    // One at a time: others wait for their answer.
    let mut duties = duties.lock().await;
    let refused = match word {
        Ok(Some(Word::TakeOver { protocol: PROTOCOL, instance })) if instance == duties.config.instance => None,
        Ok(Some(Word::TakeOver { protocol: PROTOCOL, instance })) => {
            let own = &duties.config.instance;
            Some(format!("--state-dir belongs to instance {own}, not {instance}; give each instance its own"))
        }
        Ok(Some(Word::TakeOver { .. })) => Some("it speaks another protocol; end it first".to_owned()),
        Ok(Some(Word::Done { .. })) => Some("nothing was asked for".to_owned()),
        // It went away before it asked for anything.
        Ok(None) | Err(_) => return,
    };
    if let Some(reason) = refused {
        tracing::warn!(pid, reason, "an agent that wanted to take over was refused");
        let _ = say(&mut to, &Answer::Refused { reason }).await;
        return;
    }
    tracing::info!(pid, "handing over to another agent of this instance");
    let end = match hand_over(&mut from, &mut to, &mut duties).await {
        Ok(end) => end,
        Err(error) => {
            tracing::error!(%error, "the handover failed");
            End::TakenBack
        }
    };
    if matches!(end, End::TakenBack) {
        tracing::warn!(pid, "the other agent failed to take over; this one goes on");
        if let Err(error) = duties.take_back().await {
            tracing::error!(%error, "not everything could be taken back");
        }
        let _ = say(&mut to, &Answer::TakenBack).await;
    }
    let _ = ended.send(end).await;
}

async fn hand_over(
    from: &mut BufReader<OwnedReadHalf>,
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    duties: &mut Duties,
) -> Result<End> {
    duties.stop_writing().await?;
    if say(to, &Answer::Yielded).await.is_err() {
        return Ok(End::TakenBack);
    }
    let Ok(Ok(Some(Word::Done { wants_metrics }))) = tokio::time::timeout(MANDATE, hear(from)).await else {
        return Ok(End::TakenBack);
    };
    if wants_metrics {
        duties.leave_metrics().await;
    }
    tracing::info!("the other agent is in charge; serving what is still queued here");
    tokio::select! {
        // It has nothing more to say: whatever comes is its end.
        _ = hear::<Word>(from) => return Ok(End::TakenBack),
        () = quiet(&duties.proxy) => {}
    }
    let _ = say(to, &Answer::Retired).await;
    Ok(End::Succeeded)
}

/// Waits until no connection has been accepted for [`QUIET`].
async fn quiet(proxy: &Proxy) {
    let began = Instant::now();
    let (mut last, mut since) = (proxy.accepted(), began);
    while since.elapsed() < QUIET && began.elapsed() < LONGEST {
        tokio::time::sleep(LOOK).await;
        let now = proxy.accepted();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}
