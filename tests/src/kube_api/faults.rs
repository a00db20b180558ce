//! What can be made to go wrong, from the test's side.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::MutexGuard;
use std::time::Duration;

use anyhow::{Context, Result};

use super::server::Shared;

/// What goes wrong now.
#[derive(Debug, Default)]
pub struct Knobs {
    /// Before each answer.
    pub latency: Duration,
    /// Requests that fail: path prefix, code, how many more.
    pub failing: Vec<(String, u16, usize)>,
    /// Verbs refused: (verb, resource).
    pub forbidden: Vec<(String, String)>,
    /// Watches stay open and tell nothing.
    pub stale: bool,
    /// The same for those who show this token.
    pub stale_of: Option<String>,
    /// Who has begun to watch what: (token, resource).
    pub watched: BTreeSet<(String, String)>,
    /// Who shows no token is nobody, not admin.
    pub tokens_required: bool,
    /// Answers so far, by their code.
    pub answered: BTreeMap<u16, usize>,
}

impl Knobs {
    /// Whether watches of who shows this token tell nothing.
    #[must_use]
    pub fn is_stale(&self, token: Option<&str>) -> bool {
        self.stale || self.stale_of.is_some() && self.stale_of.as_deref() == token
    }

    /// The code that a request for `path` is to fail with, counted down.
    pub fn failure(&mut self, path: &str) -> Option<u16> {
        let place = self.failing.iter().position(|(prefix, _, _)| path.starts_with(prefix))?;
        let (_, code, left) = self.failing.get_mut(place)?;
        let code = *code;
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.failing.remove(place);
        }
        Some(code)
    }
}

/// The faults of one server.
#[derive(Debug)]
pub struct Faults<'a> {
    pub(super) shared: &'a Shared,
}

impl Faults<'_> {
    fn knobs(&self) -> MutexGuard<'_, Knobs> {
        self.shared.knobs()
    }

    /// How many requests were answered with `code` so far.
    #[must_use]
    pub fn answered(&self, code: u16) -> usize {
        self.knobs().answered.get(&code).copied().unwrap_or(0)
    }

    /// Holds back each answer, the beginning of a watch too.
    pub fn latency(&self, latency: Duration) {
        self.knobs().latency = latency;
    }

    /// The next `times` requests whose path begins with `prefix` fail with `code`.
    pub fn fail(&self, prefix: &str, code: u16, times: usize) {
        if times > 0 {
            self.knobs().failing.push((prefix.to_owned(), code, times));
        }
    }

    /// Refuses a verb with 403 for everybody: `("list", "pods")`, `("patch", "httproutes/status")`.
    pub fn forbid(&self, verb: &str, resource: &str) {
        self.knobs().forbidden.push((verb.to_owned(), resource.to_owned()));
    }

    /// Permits everything again.
    pub fn permit_all(&self) {
        self.knobs().forbidden.clear();
    }

    /// Takes tokens of pods that are gone, as a real server does for some seconds after a deletion by force.
    pub fn tokens_outlive_pods(&self) {
        self.shared.cluster().tokens.outlive_pods = true;
    }

    /// Service accounts may do what the roles in the cluster permit, and no more; else they may everything.
    pub fn enforce_roles(&self, enforced: bool) {
        self.shared.cluster().roles_enforced = enforced;
    }

    /// Refuses with 401 whoever shows no token; kubectl shows none without TLS.
    pub fn require_tokens(&self, required: bool) {
        self.knobs().tokens_required = required;
    }

    /// Leaves watches open without telling them anything, until it is turned off: then they are told all.
    pub fn stale_watches(&self, stale: bool) {
        self.knobs().stale = stale;
        self.shared.wake_watches();
    }

    /// The same for the watches of those who show `token`, as of a server of several that is behind; `None`: of nobody.
    pub fn stale_watches_of(&self, token: Option<&str>) {
        self.knobs().stale_of = token.map(str::to_owned);
        self.shared.wake_watches();
    }

    /// Whether who shows `token` has listed `resource` and watches it.
    #[must_use]
    pub fn is_watched_by(&self, token: &str, resource: &str) -> bool {
        self.knobs().watched.contains(&(token.to_owned(), resource.to_owned()))
    }

    /// Cuts all watches in the middle.
    pub fn drop_watches(&self) {
        self.shared.cut_watches();
    }

    /// Cuts all connections.
    pub fn cut_connections(&self) {
        self.shared.cut_connections();
    }

    /// Forgets all changes so far: watches from an older version and lists in pieces expire.
    pub fn compact(&self) {
        self.shared.cluster().store.compact();
    }

    /// As a server that was told to stop: new connections are refused, idle ones closed, open watches go on.
    ///
    /// # Errors
    /// What the system says.
    pub fn stop_listening(&self) -> Result<()> {
        self.shared.stop_listening().context("cannot stop listening")
    }

    /// Takes new connections again.
    ///
    /// # Errors
    /// What the system says.
    pub fn listen(&self) -> Result<()> {
        self.shared.listen().context("cannot listen again")
    }

    /// As a server that is gone: connections are cut and refused.
    ///
    /// # Errors
    /// What the system says.
    pub fn refuse_connections(&self) -> Result<()> {
        self.stop_listening()?;
        self.cut_connections();
        Ok(())
    }

    /// As a server that was restarted: connections cut, history forgotten, there again.
    ///
    /// # Errors
    /// What the system says.
    pub fn restart(&self) -> Result<()> {
        self.refuse_connections()?;
        self.compact();
        self.listen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_down() {
        let mut knobs = Knobs { failing: vec![("/api/v1".to_owned(), 503, 2)], ..Knobs::default() };
        assert_eq!(knobs.failure("/apis/x"), None);
        assert_eq!(knobs.failure("/api/v1/pods"), Some(503));
        assert_eq!(knobs.failure("/api/v1"), Some(503));
        assert_eq!(knobs.failure("/api/v1"), None);
    }
}
