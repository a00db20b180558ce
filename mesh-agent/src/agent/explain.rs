//! Answers `mesh-agent explain`: the walk over the snapshot, and what the live kernel says to the same questions.

use std::sync::Arc;

use super::metrics::Board;
use crate::admin::ExplainRequest;
use crate::explain::{Check, KernelState, Question, Reply, exit_of, explain};
use crate::snapshot::Snapshot;

/// The function that the admin socket asks.
pub(super) fn source(
    board: &Arc<Board>,
    refused_ports: Vec<u16>,
) -> impl Fn(ExplainRequest) -> Reply + Send + Sync + use<> {
    let board = Arc::clone(board);
    move |request| {
        let ExplainRequest { source, destination, port, request } = request;
        let snapshot = board.snapshots.load();
        match explain(&snapshot, &Question { source, destination, port, request }, &refused_ports) {
            Ok((mut explanation, checks)) => {
                explanation.kernel = ask(&board, &snapshot, &checks);
                let name = explanation.source.pod.clone().unwrap_or_default();
                let report = board.pods().into_iter().find(|pod| pod.workload.display_name() == name);
                if let Some(pod) = report.filter(|pod| pod.stage != "captured") {
                    explanation.source.state += &format!("; {} {}", pod.stage, pod.detail);
                }
                Reply::Explained(Box::new(explanation))
            }
            Err(unclear) => Reply::Unclear(unclear),
        }
    }
}

/// Asks the kernel what the walk has asked the snapshot.
fn ask(board: &Board, snapshot: &Snapshot, checks: &[Check]) -> KernelState {
    let mut state = KernelState::default();
    for check in checks {
        let (Check::Connect { pod: uid, .. } | Check::Arrive { pod: uid, .. }) = check;
        let Some(pod) = snapshot.workload(uid) else { continue };
        if *pod.node != *snapshot.node() {
            let hook = if matches!(check, Check::Connect { .. }) { "connect()" } else { "sk_lookup" };
            push(&mut state.elsewhere, format!("{hook} of {} is the kernel's of {}", pod.display_name(), pod.node));
            continue;
        }
        state.asked += 1;
        let (wanted, found) = match check {
            Check::Connect { to, draw, decided, .. } => {
                let found = board.kernel.would_connect(uid, *to, *draw).as_ref().map(exit_of);
                let word = |(counter, to): (mesh_common::counter::Counter, Option<std::net::SocketAddr>)| match to {
                    Some(to) => format!("{} to {to}", counter.as_str()),
                    None => counter.as_str().to_owned(),
                };
                (word(*decided), found.map(word))
            }
            Check::Arrive { to, record, decided, .. } => {
                let record = record.as_ref().map(|(kind, client)| (*kind, &**client));
                let found = board.kernel.would_accept(uid, to.port(), record);
                (format!("{decided:?}"), found.map(|found| format!("{found:?}")))
            }
        };
        let name = pod.display_name();
        match found {
            None => push(&mut state.behind, format!("{name} has no entry: its agent has not enrolled it")),
            Some(found) if found != wanted => {
                push(&mut state.behind, format!("the maps say {found} for {name}, the snapshot says {wanted}"));
            }
            Some(_) if board.kernel.has_rules_of(uid, snapshot) == Some(false) => {
                push(
                    &mut state.behind,
                    format!("the rules of {name} are not those of generation {}", snapshot.generation()),
                );
            }
            Some(_) => {}
        }
    }
    state
}

fn push(list: &mut Vec<String>, line: String) {
    if !list.contains(&line) {
        list.push(line);
    }
}
