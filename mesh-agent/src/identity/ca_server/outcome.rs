//! How a request to the CA ends: one word, the same in the answer, the log and the metric.

use std::fmt;

use tonic::{Code, Status};

/// The word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaOutcome {
    /// A certificate was given.
    Issued,
    /// The caller showed nothing that proves who it is.
    NoCredentials,
    /// The token is not one of the API server's, or is not good any more for another reason than its time.
    TokenInvalid,
    /// The token's time is over.
    TokenExpired,
    /// The token is meant for somebody else.
    TokenAudience,
    /// The token is bound to no pod, so it tells no node.
    TokenUnbound,
    /// The token is of another service account than the agents'.
    NotAnAgent,
    /// The token's pod is not among the pods that the CA knows, or not where the token says.
    AgentGone,
    /// The join token was never made, was used before, has expired, or is for another node.
    JoinToken,
    /// A join token or a token of a cluster is shown for what it is not good for.
    TokenScope,
    /// A node asks for what is another node's.
    OtherNode,
    /// No enrolled pod of the service account is on the caller's node.
    NotOnNode,
    /// CSR and metadata name several identities.
    NamesDisagree,
    /// The identity is of another trust domain.
    TrustDomain,
    /// The CSR cannot be used.
    BadRequest,
    /// The API server did not say whose token it is.
    ReviewFailed,
    /// The CA could not sign.
    Internal,
}

impl CaOutcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::NoCredentials => "no_credentials",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::TokenAudience => "token_audience",
            Self::TokenUnbound => "token_unbound",
            Self::NotAnAgent => "not_an_agent",
            Self::AgentGone => "agent_gone",
            Self::JoinToken => "join_token",
            Self::TokenScope => "token_scope",
            Self::OtherNode => "other_node",
            Self::NotOnNode => "not_on_node",
            Self::NamesDisagree => "names_disagree",
            Self::TrustDomain => "trust_domain",
            Self::BadRequest => "bad_request",
            Self::ReviewFailed => "review_failed",
            Self::Internal => "internal",
        }
    }

    fn code(self) -> Code {
        match self {
            Self::Issued => Code::Ok,
            Self::NoCredentials
            | Self::TokenInvalid
            | Self::TokenExpired
            | Self::TokenAudience
            | Self::TokenUnbound
            | Self::JoinToken => Code::Unauthenticated,
            Self::NotAnAgent
            | Self::AgentGone
            | Self::TokenScope
            | Self::OtherNode
            | Self::NotOnNode
            | Self::TrustDomain => Code::PermissionDenied,
            Self::NamesDisagree | Self::BadRequest => Code::InvalidArgument,
            Self::ReviewFailed => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }
}

/// Why a request is not granted. Its text goes to the caller and into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rejection {
    pub(super) outcome: CaOutcome,
    pub(super) reason: String,
}

impl Rejection {
    pub(super) fn new(outcome: CaOutcome, reason: impl Into<String>) -> Self {
        Self { outcome, reason: reason.into() }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.outcome.as_str(), self.reason)
    }
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        Self::new(rejection.outcome.code(), rejection.to_string())
    }
}
