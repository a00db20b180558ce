//! `mesh-agent status`: asks the agent's unix socket and prints what it says, as tables or as JSON.

use std::fmt::Write;
use std::process::ExitCode;

use super::place::Place;
use super::table::{expiry, or_dash, table};
use super::{Output, fail, nodes, now, plain, show};
use crate::admin::Request;
use crate::admin::status::{IdentityStatus, PodStatus, RouteLine, Status};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    place: Place,
    /// A line for every node of the cluster, through the API server
    #[arg(long, conflicts_with_all = ["node", "pod"], help_heading = "Through the API server")]
    all_nodes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> ExitCode {
    if args.all_nodes || args.place.is_the_cluster() {
        return match nodes::read(&args.place.api) {
            Ok(nodes) => show(&nodes, Output::of(args.json), nodes::render),
            Err(error) => fail(&error),
        };
    }
    match args.place.ask::<Status>(&Request::Status) {
        Ok(status) => show(&status, Output::of(args.json), |status| render(status, now())),
        Err(error) => fail(&error),
    }
}

/// The status as text; `now` in seconds since 1970.
fn render(status: &Status, now: i64) -> String {
    let mut text = String::new();
    let snapshot = &status.snapshot;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "mesh-agent {} on node {}: generation {}, {} pods, {} service ports, {} policies known",
        status.version, status.node, snapshot.generation, snapshot.workloads, snapshot.services, snapshot.policies
    );
    let captured = status.pods.iter().filter(|pod| pod.stage == "captured").count();
    let title = format!("PODS OF THIS NODE ({captured} of {} captured)", status.pods.len());
    table(&mut text, &title, &["POD", "STAGE", "MODE", "POLICIES", "REASON"], status.pods.iter().map(pod_row));
    let identities = status.identities.iter().map(|identity| identity_row(identity, now));
    table(&mut text, "IDENTITIES", &["IDENTITY", "STATE", "EXPIRES", "LAST ERROR"], identities);
    table(
        &mut text,
        "ROUTES",
        &["ROUTE", "PARENT", "ACCEPTED", "RESOLVED", "MESSAGE"],
        status.routes.iter().map(route_row),
    );
    let peers = status.peers.iter().map(|p| [p.identity.clone(), p.address.clone(), p.tunnels.to_string()]);
    table(&mut text, "PEERS", &["IDENTITY", "ADDRESS", "TUNNELS"], peers);
    let _ = writeln!(text, "\nPROBLEMS");
    if status.problems.is_empty() {
        text.push_str("  none\n");
    }
    for problem in &status.problems {
        let _ = writeln!(text, "  {}", plain(problem));
    }
    text
}

fn pod_row(pod: &PodStatus) -> [String; 5] {
    let policies = if pod.policies.is_empty() { "-".to_owned() } else { pod.policies.join(",") };
    [pod.pod.clone(), pod.stage.clone(), pod.mode.clone(), policies, or_dash(&pod.reason)]
}

fn route_row(line: &RouteLine) -> [String; 5] {
    // A reason that only repeats the condition's name says nothing.
    let word = |holds: bool, reason: &str| if holds { "yes".to_owned() } else { format!("no: {reason}") };
    let accepted = word(line.accepted, &line.accepted_reason);
    let resolved = word(line.resolved_refs, &line.resolved_refs_reason);
    [line.route.clone(), line.parent.clone(), accepted, resolved, or_dash(&line.message)]
}

fn identity_row(identity: &IdentityStatus, now: i64) -> [String; 4] {
    [identity.identity.clone(), identity.state.clone(), expiry(identity.not_after, now), or_dash(&identity.error)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::{PeerStatus, SnapshotStatus};

    fn sample() -> Status {
        let pod = |name: &str, stage: &str, reason: &str, policies: &[&str]| PodStatus {
            pod: name.into(),
            stage: stage.into(),
            reason: reason.into(),
            identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
            mode: "strict".into(),
            policies: policies.iter().map(|p| (*p).to_owned()).collect(),
        };
        Status {
            version: "0.1.0".into(),
            node: "a".into(),
            snapshot: SnapshotStatus { generation: 7, workloads: 12, services: 3, policies: 2 },
            pods: vec![
                pod("shop/web-1", "captured", "", &["shop/only-front"]),
                pod("shop/old", "failed", "netns\nis gone", &[]),
            ],
            identities: vec![
                IdentityStatus {
                    identity: "spiffe://cluster.local/ns/shop/sa/web".into(),
                    state: "valid".into(),
                    not_after: 1000 + 11 * 3600 + 32 * 60,
                    error: String::new(),
                },
                IdentityStatus {
                    identity: "spiffe://cluster.local/ns/shop/sa/db".into(),
                    state: "missing".into(),
                    not_after: 0,
                    error: "the CA is away".into(),
                },
            ],
            routes: vec![RouteLine {
                route: "HTTPRoute shop/r".into(),
                parent: "shop/web:80".into(),
                accepted: true,
                accepted_reason: "Accepted".into(),
                resolved_refs: false,
                resolved_refs_reason: "BackendNotFound".into(),
                observed_generation: 1,
                message: "there is no Service shop/x".into(),
            }],
            peers: vec![PeerStatus { identity: "spiffe://x".into(), address: "10.0.0.2".into(), tunnels: 2 }],
            problems: vec!["policy.yaml: AuthorizationPolicy shop/x: unknown field".into()],
        }
    }

    #[test]
    fn the_tables_line_up_and_say_everything() {
        let text = render(&sample(), 1000);
        let expected = "\
mesh-agent 0.1.0 on node a: generation 7, 12 pods, 3 service ports, 2 policies known

PODS OF THIS NODE (1 of 2 captured)
  POD         STAGE     MODE    POLICIES         REASON
  shop/web-1  captured  strict  shop/only-front  -
  shop/old    failed    strict  -                netns is gone

IDENTITIES
  IDENTITY                               STATE    EXPIRES         LAST ERROR
  spiffe://cluster.local/ns/shop/sa/web  valid    in 11 h 32 min  -
  spiffe://cluster.local/ns/shop/sa/db   missing  -               the CA is away

ROUTES
  ROUTE             PARENT       ACCEPTED  RESOLVED             MESSAGE
  HTTPRoute shop/r  shop/web:80  yes       no: BackendNotFound  there is no Service shop/x

PEERS
  IDENTITY    ADDRESS   TUNNELS
  spiffe://x  10.0.0.2  2

PROBLEMS
  policy.yaml: AuthorizationPolicy shop/x: unknown field
";
        assert_eq!(text, expected);
    }

    #[test]
    fn an_empty_status_says_none() {
        assert_eq!(render(&Status::default(), 0).matches("  none\n").count(), 5);
    }

    #[test]
    fn no_agent_is_said_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { state_dir: dir.path().to_owned(), ..Place::default() };
        let args = StatusArgs { place, all_nodes: false, json: false };
        assert_eq!(format!("{:?}", run(&args)), format!("{:?}", ExitCode::FAILURE));
    }
}
