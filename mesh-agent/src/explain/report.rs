//! What `explain` says, as it goes over the admin socket and out of `--output json`.

use serde::{Deserialize, Serialize};

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The walk.
    Explained(Box<Explanation>),
    /// The question names something that there is not; the sentence says what there is.
    Unclear(String),
}

/// The decision on one connection, step by step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Node of the agent that answers.
    pub node: String,
    /// The snapshot walked.
    pub generation: u64,
    /// What becomes of the connection.
    pub verdict: Verdict,
    /// Who connects.
    pub source: Source,
    /// What the application dials.
    pub destination: Destination,
    /// Annotations of either end that keep this connection away from the mesh.
    pub exclusions: Vec<String>,
    /// What routes make of it; `None`: none concerns it.
    #[serde(default)]
    pub route: Option<RouteReport>,
    /// What can happen, with its share; more than one for a service.
    pub paths: Vec<Path>,
    /// Whether the live kernel says the same.
    pub kernel: KernelState,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Let through, whichever endpoint it is.
    Allowed,
    /// Refused, whichever endpoint it is.
    Refused,
    /// Some endpoints refuse it.
    Mixed,
}

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// `namespace/name` of the pod; `None` when the address is nobody's.
    pub pod: Option<String>,
    /// Address it connects from; `None` when it has none of that family.
    pub ip: Option<String>,
    /// Its node; empty when unknown.
    pub node: String,
    /// What it proves; `None` when nothing captures its connects.
    pub identity: Option<String>,
    /// In words: captured or not, and why.
    pub state: String,
}

/// What the application dials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// `service`, `pod`, `outside`, `self` or `loopback`.
    pub kind: String,
    /// Its name; the address when it has none.
    pub name: String,
    /// The addresses dialled; several for a headless service, whose client chooses.
    pub dialled: Vec<String>,
    /// In words: what is behind it.
    pub state: String,
}

/// What routes make of a connection or a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteReport {
    /// The rule that the request meets.
    pub rule: Option<String>,
    /// In words: whose routes, which match or the near miss, what becomes of the request.
    pub said: Vec<String>,
}

/// One thing that can happen to the connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// How much of all connections, 0 to 1, with evenly loaded endpoints.
    pub share: f64,
    /// Where it ends; empty when no endpoint is chosen.
    pub endpoint: String,
    /// The pod there.
    pub pod: Option<String>,
    /// Its node; empty when unknown.
    pub node: String,
    /// `bypass`, `native`, `tunnel`, `plaintext`, or `none` for what is refused before it has one.
    pub lane: String,
    /// Why this lane.
    pub why: String,
    /// Whether it is let through.
    pub allowed: bool,
    /// The word of the access log.
    pub outcome: String,
    /// The policy that decided, or a built-in rule in angle brackets.
    pub rule: Option<String>,
    /// Why; for a refusal the near miss.
    pub reason: String,
    /// For what goes out of the mesh: the rule of the source that refuses that, and the built-in rule that admits it
    /// all the same.
    pub egress: Option<String>,
    /// What the policies of the pod there say of the request asked about, where any of them asks for requests.
    #[serde(default)]
    pub request: Option<String>,
    /// Inbound mode of the port, and the object that decided it.
    pub peer_mode: Option<String>,
    /// Where it is enforced, in order.
    pub enforced: Vec<String>,
    /// The kernel exits that count it, in order (`mesh_kernel_exits_total`).
    pub exits: Vec<String>,
}

/// Whether the live kernel decides as the walk did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelState {
    /// Decisions asked of the kernel's maps: those of this node.
    pub asked: usize,
    /// Where the maps say something else: the kernel is behind the snapshot.
    pub behind: Vec<String>,
    /// Decisions of other nodes' kernels.
    pub elsewhere: Vec<String>,
}

impl Explanation {
    /// The verdict over all that can happen.
    pub(super) fn sum_up(paths: &[Path]) -> Verdict {
        match (paths.iter().any(|path| path.allowed), paths.iter().any(|path| !path.allowed)) {
            (true, false) => Verdict::Allowed,
            (true, true) => Verdict::Mixed,
            (false, _) => Verdict::Refused,
        }
    }
}
