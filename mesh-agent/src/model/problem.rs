//! A mistake in somebody's input, kept until it is mended.

use std::fmt;
use std::sync::Arc;

/// One named mistake in a configuration object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// File (directory source) or resource path (API server).
    pub location: Arc<str>,
    /// `Kind namespace/name`, as far as it could be read.
    pub object: Arc<str>,
    /// Path of the field, e.g. `spec.rules[0].sources[1].type`; empty when it is the whole object.
    pub field: Arc<str>,
    /// What is wrong and what to do.
    pub reason: Arc<str>,
    /// What the mesh does meanwhile: closed enum, also the metric's label.
    pub effect: Effect,
}

/// What a mistake leads to until it is mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// The last good version stays in force.
    KeepsLast,
    /// The object is ignored, nothing was in force before.
    Ignored,
    /// An enforcement object: what it targets is denied.
    Denies,
    /// The object works; this part of it does not.
    Partly,
}

impl Effect {
    /// The word in logs, metrics and status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::KeepsLast => "keeps_last",
            Self::Ignored => "ignored",
            Self::Denies => "denies",
            Self::Partly => "partly",
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.object)?;
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {} ({})", self.reason, self.effect.as_str())
    }
}
