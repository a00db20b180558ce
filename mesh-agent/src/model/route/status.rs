//! What the mesh says of a route: the content of its `status`.

use std::fmt;
use std::sync::Arc;

use super::RouteName;

/// What the mesh says of a route object, as its `status` has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteStatus {
    /// The object.
    pub route: RouteName,
    /// `metadata.generation` of what was judged; 0 where the source has none.
    pub observed_generation: i64,
    /// One for each parent that is ours, in the object's order.
    pub parents: Vec<ParentStatus>,
}

/// What the mesh says of a route at one parent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParentStatus {
    /// The reference, as the object has it.
    pub parent: ParentRef,
    /// `Accepted`.
    pub accepted: Condition,
    /// `ResolvedRefs`.
    pub resolved_refs: Condition,
    /// `PartiallyInvalid`, where rules were dropped.
    pub partially_invalid: Option<Condition>,
}

/// A `parentRef` to a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParentRef {
    /// Namespace of the Service, given or the route's.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
    /// `None`: every port.
    pub port: Option<u16>,
    /// The name of a Service port; `None`: every port.
    pub section_name: Option<Arc<str>>,
}

impl fmt::Display for ParentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        self.section_name.as_ref().map_or(Ok(()), |name| write!(f, " port `{name}`"))
    }
}

/// A condition of a route's status. Its type is the field that holds it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// `True` or `False`.
    pub holds: bool,
    /// Why.
    pub reason: Reason,
    /// Why, in a sentence; empty where the reason says it all.
    pub message: Arc<str>,
}

/// The reasons of route conditions: the Gateway API's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// In force.
    Accepted,
    /// Every reference leads somewhere.
    ResolvedRefs,
    /// The parent, or its port, is not there.
    NoMatchingParent,
    /// The parent cannot have routes, or no rule is left.
    UnsupportedValue,
    /// A route of a more specific kind has the port.
    Conflicted,
    /// A backend is of a kind that cannot be one.
    InvalidKind,
    /// A backend, or its port, is not there.
    BackendNotFound,
}

impl Reason {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::NoMatchingParent => "NoMatchingParent",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::Conflicted => "Conflicted",
            Self::InvalidKind => "InvalidKind",
            Self::BackendNotFound => "BackendNotFound",
        }
    }
}
