//! `mesh-agent status` of a whole cluster: a line for each node, from what the API server knows. No agent is asked.

use std::collections::BTreeMap;

use serde::Serialize;

use super::place::{Api, wait};
use super::table::table;
use crate::control::AgentPod;

/// The nodes.
#[derive(Debug, Default, Serialize)]
pub(super) struct Nodes {
    nodes: Vec<Line>,
    /// What could not be read, and so is missing.
    notes: Vec<String>,
}

/// One node, or one of its two agents while one takes over from the other.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Line {
    node: String,
    agent: Option<String>,
    state: String,
    ready: bool,
    restarts: u64,
    image: String,
    /// Pods that the node's agent has published as captured; none when it has published nothing.
    captured: Option<usize>,
}

/// Reads them.
pub(super) fn read(api: &Api) -> Result<Nodes, String> {
    wait(async {
        let operator = api.open().await?;
        let (agents, nodes, captured) = tokio::join!(operator.agents(), operator.nodes(), operator.captured());
        let agents = agents.map_err(|error| error.to_string())?;
        let mut notes = Vec::new();
        let mut noted = |what: &str, error: crate::control::Unreached| notes.push(format!("{what}: {error}"));
        let nodes = nodes.unwrap_or_else(|error| {
            noted("nodes without an agent are missing", error);
            Vec::new()
        });
        let captured = captured.unwrap_or_else(|error| {
            noted("the numbers of captured pods are missing", error);
            Vec::new()
        });
        let mut nodes = Nodes { nodes: lines(agents, &nodes, &captured.into_iter().collect()), notes };
        if nodes.nodes.iter().all(|line| line.agent.is_none()) {
            let namespace = api.namespace();
            nodes.notes.push(format!("no agent is in namespace {namespace}; another one is named by --namespace"));
        }
        Ok(nodes)
    })
}

fn lines(agents: Vec<AgentPod>, nodes: &[String], captured: &BTreeMap<String, usize>) -> Vec<Line> {
    let without = nodes.iter().filter(|node| agents.iter().all(|agent| agent.node != **node));
    let without = without.map(|node| Line {
        node: node.clone(),
        state: "no agent".to_owned(),
        captured: captured.get(node).copied(),
        ..Line::default()
    });
    let mut lines: Vec<Line> = without.collect();
    lines.extend(agents.into_iter().map(|agent| Line {
        captured: captured.get(&agent.node).copied(),
        agent: Some(agent.name),
        node: agent.node,
        state: agent.state,
        ready: agent.ready,
        restarts: agent.restarts,
        image: agent.image,
    }));
    lines.sort_by(|a, b| (&a.node, &a.agent).cmp(&(&b.node, &b.agent)));
    lines
}

pub(super) fn render(nodes: &Nodes) -> String {
    let mut text = String::new();
    let ready = nodes.nodes.iter().filter(|line| line.ready).count();
    let dash = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
    let row = |line: &Line| {
        [
            dash(Some(line.node.clone())),
            if line.ready { "yes" } else { "no" }.to_owned(),
            line.state.clone(),
            dash(line.captured.map(|count| count.to_string())),
            line.restarts.to_string(),
            dash(line.agent.clone()),
            dash(Some(line.image.clone())),
        ]
    };
    let title = format!("NODES ({ready} agents ready)");
    let head = ["NODE", "READY", "STATE", "CAPTURED", "RESTARTS", "AGENT", "IMAGE"];
    table(&mut text, &title, &head, nodes.nodes.iter().map(row));
    for note in &nodes.notes {
        text.push_str(&format!("\n{}\n", super::plain(note)));
    }
    text.trim_start().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_an_agent_has_a_line_too() {
        let agent = AgentPod {
            name: "mesh-agent-x".into(),
            node: "a".into(),
            ready: true,
            running: true,
            state: "Running".into(),
            image: "mesh-agent:1".into(),
            ..AgentPod::default()
        };
        let captured = BTreeMap::from([("a".to_owned(), 3)]);
        let nodes = lines(vec![agent], &["a".to_owned(), "b".to_owned()], &captured);
        let text = render(&Nodes { nodes, notes: vec!["note".to_owned()] });
        let expected = "\
NODES (1 agents ready)
  NODE  READY  STATE     CAPTURED  RESTARTS  AGENT         IMAGE
  a     yes    Running   3         0         mesh-agent-x  mesh-agent:1
  b     no     no agent  -         0         -             -

note
";
        assert_eq!(text, expected);
    }
}
