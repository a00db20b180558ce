//! `mesh-agent check strict NAMESPACE`: whom strict peer mode would refuse there, from traffic that agents have seen.
//!
//! Exit codes: 0 nobody, 1 somebody, 2 not known: some agent did not answer, and no other has seen anybody.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;

use crate::admin::Request;
use crate::admin::callers::{CallerLine, Callers};
use crate::cli::place::{Api, Place, ask_all, wait};
use crate::cli::table::{span, table};
use crate::cli::{Output, fail, plain, show};

const NOT_KNOWN: u8 = 2;

/// Arguments of `check strict`.
#[derive(Debug, clap::Args)]
pub(super) struct StrictArgs {
    /// The namespace that is to be strict
    of: String,
    #[command(flatten)]
    place: Place,
    /// Ask the agents of all nodes, through the API server
    #[arg(long, conflicts_with_all = ["node", "pod"], help_heading = "Through the API server")]
    all_nodes: bool,
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// What the agents have seen.
#[derive(Debug, Default, Serialize)]
struct Seen {
    namespace: String,
    nodes: Vec<Callers>,
    /// Agents that could not be asked, and why.
    missing: Vec<String>,
}

pub(super) fn run(args: &StrictArgs) -> ExitCode {
    let request = Request::Callers { namespace: args.of.clone() };
    let seen = if args.all_nodes || args.place.is_the_cluster() {
        everywhere(&args.place.api, &request)
    } else {
        args.place.ask(&request).map(|callers| (vec![callers], Vec::new()))
    };
    let (nodes, missing) = match seen {
        Ok(seen) => seen,
        Err(error) => {
            let _ = fail(&error);
            return ExitCode::from(NOT_KNOWN);
        }
    };
    let seen = Seen { namespace: args.of.clone(), nodes, missing };
    if show(&seen, args.output, render) != ExitCode::SUCCESS {
        return ExitCode::from(NOT_KNOWN);
    }
    seen.verdict()
}

/// Asks every agent.
fn everywhere(api: &Api, request: &Request) -> Result<(Vec<Callers>, Vec<String>), String> {
    wait(async {
        let operator = api.open().await?;
        let agents = operator.agents().await.map_err(|error| error.to_string())?;
        if agents.iter().all(|agent| !agent.running) {
            return Err(format!("no agent runs in namespace {}; another is named by --namespace", api.namespace()));
        }
        let (mut nodes, mut missing) = (Vec::new(), Vec::new());
        for (_, answer) in ask_all(&operator, agents, request).await {
            match answer {
                Ok(callers) => nodes.push(callers),
                Err(error) => missing.push(error),
            }
        }
        Ok((nodes, missing))
    })
}

impl Seen {
    fn refused(&self) -> impl Iterator<Item = &CallerLine> {
        self.nodes.iter().flat_map(|node| &node.callers).filter(|caller| caller.exempt_by.is_empty())
    }

    fn verdict(&self) -> ExitCode {
        match (self.refused().next(), self.missing.is_empty()) {
            (Some(_), _) => ExitCode::FAILURE,
            (None, true) => ExitCode::SUCCESS,
            (None, false) => ExitCode::from(NOT_KNOWN),
        }
    }
}

fn render(seen: &Seen) -> String {
    let mut text = String::new();
    let refused: Vec<&CallerLine> = seen.refused().collect();
    let title = format!("STRICT IN {} WOULD REFUSE ({})", seen.namespace, refused.len());
    let head = ["POD", "PORT", "FROM", "KIND", "WHO", "SEEN", "LAST"];
    table(&mut text, &title, &head, refused.iter().map(|caller| row(caller)));
    let exempt: Vec<&CallerLine> =
        seen.nodes.iter().flat_map(|node| &node.callers).filter(|caller| !caller.exempt_by.is_empty()).collect();
    if !exempt.is_empty() {
        let rows = exempt.iter().map(|caller| {
            [
                caller.pod.clone(),
                caller.port.to_string(),
                caller.source.clone(),
                caller.name.clone(),
                caller.exempt_by.clone(),
            ]
        });
        table(&mut text, "EXEMPT", &["POD", "PORT", "FROM", "WHO", "BY"], rows);
    }
    let mut kinds: Vec<_> = refused.iter().map(|caller| caller.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\n{}: {}", word(kind), kind.way_out());
    }
    for missing in &seen.missing {
        let _ = writeln!(text, "\nnot asked: {}", plain(missing));
    }
    let nodes: Vec<&str> = seen.nodes.iter().map(|node| node.node.as_str()).collect();
    let _ = writeln!(text, "\nSeen since the agents of these nodes began: {}.", nodes.join(", "));
    text.trim_start().to_owned()
}

fn word(kind: crate::explain::callers::Kind) -> String {
    serde_json::to_value(kind).ok().and_then(|word| Some(word.as_str()?.to_owned())).unwrap_or_default()
}

fn row(caller: &CallerLine) -> [String; 7] {
    let ago = i64::try_from(caller.seconds_ago).unwrap_or(i64::MAX);
    [
        caller.pod.clone(),
        caller.port.to_string(),
        caller.source.clone(),
        word(caller.kind),
        caller.name.clone(),
        format!("{}x", caller.count),
        format!("{} ago", span(ago)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::callers::Kind;

    fn caller(name: &str, exempt_by: &str) -> CallerLine {
        CallerLine {
            pod: "shop/web".into(),
            port: 80,
            source: "10.0.0.9".into(),
            kind: Kind::Prometheus,
            name: name.into(),
            count: 3,
            seconds_ago: 65,
            exempt_by: exempt_by.into(),
        }
    }

    fn seen(callers: Vec<CallerLine>, missing: &[&str]) -> Seen {
        let missing = missing.iter().map(|why| (*why).to_owned()).collect();
        Seen { namespace: "shop".into(), nodes: vec![Callers { node: "a".into(), callers }], missing }
    }

    #[test]
    fn who_would_be_refused_is_told_from_who_is_exempt() {
        let text = render(&seen(vec![caller("infra/prom", ""), caller("infra/hook", "PeerPolicy shop/p")], &[]));
        let expected = "\
STRICT IN shop WOULD REFUSE (1)
  POD       PORT  FROM      KIND        WHO         SEEN  LAST
  shop/web  80    10.0.0.9  prometheus  infra/prom  3x    1 min ago

EXEMPT
  POD       PORT  FROM      WHO         BY
  shop/web  80    10.0.0.9  infra/hook  PeerPolicy shop/p

prometheus: opt the scraper in, or exempt the metrics port: `ports` of a PeerPolicy

Seen since the agents of these nodes began: a.
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_exit_code_tells_nobody_from_nobody_known() {
        let check = |callers, missing: &[&str], code: ExitCode| assert_eq!(seen(callers, missing).verdict(), code);
        check(vec![], &[], ExitCode::SUCCESS);
        check(vec![caller("x", "PeerPolicy shop/p")], &[], ExitCode::SUCCESS);
        check(vec![caller("x", "")], &["node b"], ExitCode::FAILURE);
        check(vec![], &["node b"], ExitCode::from(NOT_KNOWN));
    }
}
