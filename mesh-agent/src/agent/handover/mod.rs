//! Two agents of one instance on one node: how the running one hands the node over to the one that starts.
//!
//! ```text
//!  successor                                             predecessor
//!  reads the objects, gets its certificates              serves, writes
//!  TakeOver ───────────────────────────────────────────► stops writing maps, hooks, publications
//!                                          Yielded ◄──── serves on
//!  enrols every pod: its listeners take the place of the predecessor's, pod by pod
//!  Done ───────────────────────────────────────────────► serves what is queued; quiet for a while
//!  ready                                   Retired ◄──── closes its listeners, drains, ends
//! ```
//! The conversation is lines of JSON over a 0600 unix socket in the state directory. While it lasts, the end of the
//! successor's side means that it is gone, whatever the reason: the predecessor puts its listeners back and writes
//! again ([`Answer::TakenBack`] tells a successor that still lives). A predecessor that is gone has left nothing to
//! wait for. See docs/decisions/0005-handover.md.

pub(super) mod charge;
pub(super) mod predecessor;
pub(super) mod successor;

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWrite, AsyncWriteExt};

/// Name of the socket in the state directory.
const SOCKET_NAME: &str = "handover.sock";
/// The words below. Fields may be added to them; another meaning is another number.
const PROTOCOL: u32 = 1;
/// No word is longer: names of instances and reasons.
const LONGEST_LINE: u64 = 64 * 1024;

/// What a successor says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Word {
    /// Everything is prepared that can be without touching the node.
    TakeOver {
        /// [`PROTOCOL`] of the successor.
        protocol: u32,
        /// Its `--instance`.
        instance: String,
    },
    /// Every pod's new connections come to the successor.
    Done {
        /// The predecessor holds the address on which the successor is to serve its metrics.
        wants_metrics: bool,
    },
}

/// What a predecessor says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Answer {
    /// It writes no more.
    Yielded,
    /// It hands nothing over, for this reason.
    Refused { reason: String },
    /// It writes again: the successor took too long.
    TakenBack,
    /// Nobody has come to its listeners for a while; it closes them now.
    Retired,
}

/// The next word; `None` at the end of the conversation.
async fn hear<T: DeserializeOwned>(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<T>> {
    let mut line = String::new();
    let mut limited = tokio::io::AsyncReadExt::take(from, LONGEST_LINE);
    limited.read_line(&mut line).await?;
    // A line without its end was cut off with its speaker.
    let Some(line) = line.strip_suffix('\n') else { return Ok(None) };
    serde_json::from_str(line).map(Some).map_err(io::Error::other)
}

async fn say(to: &mut (impl AsyncWrite + Unpin), word: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(word).map_err(io::Error::other)?;
    line.push(b'\n');
    to.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn words_arrive_whole_or_not_at_all() {
        let mut wire = Vec::new();
        say(&mut wire, &Word::TakeOver { protocol: PROTOCOL, instance: "a".into() }).await.unwrap();
        say(&mut wire, &Word::Done { wants_metrics: true }).await.unwrap();
        let mut half = &wire[..wire.len() - 1];
        assert!(matches!(hear(&mut half).await.unwrap(), Some(Word::TakeOver { .. })));
        assert_eq!(hear::<Word>(&mut half).await.unwrap(), None, "its speaker died in the middle of it");
        let mut nonsense: &[u8] = b"{\"say\":\"hello\"}\n";
        assert!(hear::<Word>(&mut nonsense).await.is_err());
        let newer = b"{\"say\":\"done\",\"wants_metrics\":false,\"of_a_later_version\":1}\n";
        assert_eq!(hear(&mut &newer[..]).await.unwrap(), Some(Word::Done { wants_metrics: false }));
    }
}
