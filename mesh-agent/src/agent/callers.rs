//! What `mesh-agent check strict` is told: who came without proof, by the kernel's memory, and who that is, by the
//! snapshot.

use super::metrics::Board;
use crate::admin::callers::{CallerLine, Callers};
use crate::explain::callers::{Directory, exemption};

/// Those who came to pods of `namespace`, the newest first.
pub(super) fn of(board: &Board, namespace: &str) -> Callers {
    let snapshot = board.snapshots.load();
    let directory = Directory::of(&snapshot);
    let lines = board.kernel.unproven().into_iter().filter_map(|seen| {
        let pod = snapshot.workload(&seen.pod).filter(|pod| *pod.namespace == *namespace)?;
        let caller = directory.who(seen.source);
        Some(CallerLine {
            pod: pod.display_name(),
            port: seen.port,
            source: seen.source.to_string(),
            kind: caller.kind,
            name: caller.name,
            count: seen.count,
            seconds_ago: seen.ago.as_secs(),
            exempt_by: exemption(pod, seen.port).unwrap_or_default(),
        })
    });
    let mut callers: Vec<CallerLine> = lines.collect();
    callers.sort_by(|a, b| (a.seconds_ago, &a.pod, a.port, &a.source).cmp(&(b.seconds_ago, &b.pod, b.port, &b.source)));
    Callers { node: snapshot.node().to_owned(), callers }
}
