//! Readiness: named conditions, each with the reason why it does not hold yet.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// One thing that must hold before the agent is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The first snapshot has been read.
    Source,
    /// The kernel's programs are attached.
    Kernel,
    /// Every opted-in pod that can be captured is.
    Pods,
    /// No other agent of this instance is in charge of the pods any more.
    Handover,
    /// The agent is not stopping.
    Serving,
}

/// Which conditions do not hold, and why.
#[derive(Debug)]
pub struct Readiness(Mutex<BTreeMap<Condition, String>>);

impl Readiness {
    /// Nothing holds yet, for these reasons.
    #[must_use]
    pub fn waiting(reasons: &[(Condition, &str)]) -> Self {
        Self(Mutex::new(reasons.iter().map(|(condition, reason)| (*condition, (*reason).to_owned())).collect()))
    }

    /// The condition holds.
    pub fn holds(&self, condition: Condition) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&condition);
    }

    /// The condition does not hold.
    pub fn lacks(&self, condition: Condition, reason: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(condition, reason);
    }

    /// What is missing; empty when ready.
    #[must_use]
    pub fn missing(&self) -> BTreeMap<Condition, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_nothing_is_missing() {
        let ready = Readiness::waiting(&[(Condition::Source, "not read yet"), (Condition::Pods, "not looked at")]);
        ready.holds(Condition::Source);
        assert_eq!(ready.missing().keys().copied().collect::<Vec<_>>(), [Condition::Pods]);
        ready.holds(Condition::Pods);
        assert!(ready.missing().is_empty());
        ready.lacks(Condition::Serving, "stopping".into());
        assert!(!ready.missing().is_empty());
    }
}
