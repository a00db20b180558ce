//! The side of the agent that starts: is there a predecessor, and may the node be touched yet?
//!
//! Everything that can fail or take long (reading the objects, the certificate authority) comes before the request,
//! so that nobody writes for a moment only. Never touches the kernel.

use std::collections::BTreeSet;
use std::future::pending;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;

use super::{Answer, PROTOCOL, SOCKET_NAME, Word, hear, say};
use crate::identity::CertStore;
use crate::model::identity::Identity;
use crate::snapshot::{Snapshot, SnapshotStore};

/// A predecessor stops writing after the reconciliation that it is in: some milliseconds for each pod.
const YIELD_WITHIN: Duration = Duration::from_secs(30);
/// Putting its listeners back takes a predecessor well under a millisecond for each pod.
const TAKE_BACK_WITHIN: Duration = Duration::from_secs(5);

/// The predecessor's word that the node may be written to. Dropping it gives the node back.
pub(in crate::agent) struct Mandate {
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
}

/// How the conversation went on after [`Mandate::done`].
#[derive(Debug, PartialEq, Eq)]
pub(in crate::agent) enum End {
    /// The predecessor closes its listeners, or is gone.
    Gone,
    /// It has taken the node back.
    TakenBack,
}

impl Mandate {
    /// Tells the predecessor that every pod's new connections come here.
    pub(in crate::agent) async fn done(&mut self, wants_metrics: bool) -> io::Result<()> {
        say(&mut self.to, &Word::Done { wants_metrics }).await
    }

    /// Waits until the conversation is over, however it ends.
    pub(in crate::agent) async fn over(&mut self) -> End {
        match hear(&mut self.from).await {
            Ok(Some(Answer::TakenBack)) => End::TakenBack,
            _ => End::Gone,
        }
    }

    /// Gives the node back while this agent still serves, and waits until the predecessor has it.
    pub(in crate::agent) async fn give_back(mut self) {
        let _ = self.to.shutdown().await;
        if tokio::time::timeout(TAKE_BACK_WITHIN, self.over()).await.is_err() {
            tracing::warn!("the predecessor does not say that it has taken the node back");
        }
    }
}

/// Asks the agent that runs, if one does, to stop writing; `prepared` is awaited first. `None`: there is none.
///
/// # Errors
/// When there is one that does not hand over.
pub(in crate::agent) async fn take_over(
    state_dir: &Path,
    instance: &str,
    prepared: impl AsyncFn(),
) -> Result<Option<Mandate>> {
    loop {
        let Some(mut mandate) = connect(state_dir).await? else { return Ok(None) };
        tracing::info!("another agent of this instance runs; preparing to take over from it");
        tokio::select! {
            _ = mandate.over() => continue,
            () = prepared() => {}
        }
        if say(&mut mandate.to, &Word::TakeOver { protocol: PROTOCOL, instance: instance.to_owned() }).await.is_err() {
            continue;
        }
        let way_out = "end the agent that runs, or give this one another --instance and --state-dir";
        match tokio::time::timeout(YIELD_WITHIN, hear(&mut mandate.from)).await {
            Ok(Ok(Some(Answer::Yielded))) => return Ok(Some(mandate)),
            Ok(Ok(Some(Answer::Refused { reason }))) => bail!("the agent that runs does not hand over: {reason}"),
            Ok(Ok(None)) => tracing::info!("the agent that ran is gone"),
            Ok(Ok(Some(other))) => bail!("the agent that runs answers {other:?} to a request to hand over; {way_out}"),
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => {}
            Ok(Err(error)) => return Err(error).context("the agent that runs cannot be understood").context(way_out),
            Err(_elapsed) => bail!("the agent that runs does not answer within {YIELD_WITHIN:?}; {way_out}"),
        }
    }
}

async fn connect(state_dir: &Path) -> Result<Option<Mandate>> {
    let path = state_dir.join(SOCKET_NAME);
    match UnixStream::connect(&path).await {
        Ok(stream) => {
            let (from, to) = stream.into_split();
            Ok(Some(Mandate { from: BufReader::new(from), to }))
        }
        // Never been one, or it left its file behind.
        Err(error) if [ErrorKind::NotFound, ErrorKind::ConnectionRefused].contains(&error.kind()) => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Waits until the objects have been read and there is a certificate for every pod that the predecessor has
/// captured: from the first moment on, this agent serves them as well as that one.
pub(in crate::agent) async fn prepared(
    snapshots: &SnapshotStore,
    certificates: &CertStore,
    wanted: &watch::Sender<BTreeSet<Identity>>,
) {
    let (mut read, mut issued) = (snapshots.watch(), certificates.watch());
    loop {
        let snapshot = snapshots.load();
        if snapshot.generation() > 0 {
            let identities = identities(&snapshot);
            wanted.send_if_modified(|current| {
                let changed = *current != identities;
                *current = identities;
                changed
            });
            let served = snapshot.local_workloads().filter(|pod| pod.is_enrolled() && pod.captured.is_some());
            if served.into_iter().all(|pod| certificates.current(&pod.identity).is_some()) {
                return;
            }
        }
        let changed = tokio::select! {
            changed = read.changed() => changed.is_ok(),
            changed = issued.changed() => changed.is_ok(),
        };
        if !changed {
            // The stores are gone: the agent is ending.
            pending::<()>().await;
        }
    }
}

fn identities(snapshot: &Snapshot) -> BTreeSet<Identity> {
    snapshot.local_workloads().filter(|pod| pod.is_enrolled()).map(|pod| pod.identity.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::private_socket;

    async fn unasked() {}

    #[tokio::test]
    async fn no_socket_or_a_stale_one_is_no_predecessor() {
        let dir = tempfile::tempdir().unwrap();
        assert!(take_over(dir.path(), "a", unasked).await.unwrap().is_none());
        drop(private_socket(dir.path(), SOCKET_NAME).unwrap());
        assert!(dir.path().join(SOCKET_NAME).exists(), "a killed agent leaves its file behind");
        assert!(take_over(dir.path(), "a", unasked).await.unwrap().is_none());
    }

    /// A predecessor that gives `answer` to the first word that it hears.
    fn predecessor(dir: &Path, answer: Option<Answer>) {
        let listener = private_socket(dir, SOCKET_NAME).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            drop(listener);
            let (from, mut to) = stream.into_split();
            let word: Option<Word> = hear(&mut BufReader::new(from)).await.unwrap();
            assert_eq!(word, Some(Word::TakeOver { protocol: PROTOCOL, instance: "a".into() }));
            match answer {
                Some(answer) => {
                    say(&mut to, &answer).await.unwrap();
                    pending::<()>().await;
                }
                None => drop(to),
            }
        });
    }

    #[tokio::test]
    async fn a_predecessor_yields_refuses_or_dies() {
        let dir = tempfile::tempdir().unwrap();
        predecessor(dir.path(), Some(Answer::Yielded));
        assert!(take_over(dir.path(), "a", unasked).await.unwrap().is_some());
        predecessor(dir.path(), Some(Answer::Refused { reason: "another instance".into() }));
        let error = take_over(dir.path(), "a", unasked).await.err().unwrap().to_string();
        assert!(error.contains("another instance"), "{error}");
        predecessor(dir.path(), None);
        assert!(take_over(dir.path(), "a", unasked).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_predecessor_that_dies_while_the_successor_prepares_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let listener = private_socket(dir.path(), SOCKET_NAME).unwrap();
        let dies = async {
            drop(listener.accept().await.unwrap());
            drop(listener);
        };
        let (taken, ()) = tokio::join!(take_over(dir.path(), "a", pending::<()>), dies);
        assert!(taken.unwrap().is_none());
    }
}
