//! How a connection ended: one word, the same in the access log, the metric and the answer to the app.

use std::fmt;

/// Why a connection ended. Everything but [`Outcome::Ok`] and [`Outcome::AppReset`] is the mesh's doing or finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Both directions ended in order.
    Ok,
    /// One of the two applications reset it.
    AppReset,
    /// A policy refused it.
    Denied,
    /// A live connection whose permit no longer holds.
    Revoked,
    /// Plaintext to a port that requires mTLS.
    PlaintextRefused,
    /// The service has no endpoint that may be used.
    NoEndpoints,
    /// The chosen endpoint, or the application behind it, refused the connection.
    ConnectRefused,
    /// The chosen endpoint did not answer in time.
    ConnectTimeout,
    /// The chosen endpoint could not be reached.
    ConnectUnreachable,
    /// The TLS handshake with the peer failed.
    TlsFailed,
    /// The peer proved to be somebody else than the endpoint's service account.
    IdentityMismatch,
    /// This node has no certificate for the source's service account (yet).
    NoCertificate,
    /// The peer broke the tunnel protocol, or the tunnel broke.
    TunnelFailed,
    /// The connection's original destination could not be recovered.
    NoOrigDst,
    /// The peer asked for a destination that this listener does not serve.
    BadTarget,
    /// What came is no HTTP where only HTTP is served.
    NotHttp,
    /// The pod or the node is over a limit.
    Overloaded,
    /// The agent is stopping.
    AgentDrained,
    /// A fault of the agent itself.
    Internal,
}

impl Outcome {
    /// Every outcome, for metric registration and documentation.
    pub const ALL: [Self; 19] = [
        Self::Ok,
        Self::AppReset,
        Self::Denied,
        Self::Revoked,
        Self::PlaintextRefused,
        Self::NoEndpoints,
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectUnreachable,
        Self::TlsFailed,
        Self::IdentityMismatch,
        Self::NoCertificate,
        Self::TunnelFailed,
        Self::NoOrigDst,
        Self::BadTarget,
        Self::NotHttp,
        Self::Overloaded,
        Self::AgentDrained,
        Self::Internal,
    ];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::AppReset => "app_reset",
            Self::Denied => "denied",
            Self::Revoked => "revoked",
            Self::PlaintextRefused => "plaintext_refused",
            Self::NoEndpoints => "no_endpoints",
            Self::ConnectRefused => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::ConnectUnreachable => "connect_unreachable",
            Self::TlsFailed => "tls_failed",
            Self::IdentityMismatch => "identity_mismatch",
            Self::NoCertificate => "no_certificate",
            Self::TunnelFailed => "tunnel_failed",
            Self::NoOrigDst => "no_orig_dst",
            Self::BadTarget => "bad_target",
            Self::NotHttp => "not_http",
            Self::Overloaded => "overloaded",
            Self::AgentDrained => "agent_drained",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
