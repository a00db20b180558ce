//! Why a connection was not established, or did not end in order: one enum, each variant with its outcome.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::outcome::Outcome;
use crate::model::workload::WorkloadUid;
use crate::policy::Denial;
use crate::telemetry::record::Ending;
use crate::tls::TlsError;

/// A connection's failure. Cloned to every connection that waited for the same tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The kernel half has no record of it: it did not come from a captured `connect()`.
    #[error("the kernel has no record of the original destination")]
    NoOrigDst,
    /// Ours: a listener of a pod that the snapshot does not have.
    #[error("no workload with uid {0} is known")]
    UnknownPod(WorkloadUid),
    /// The service's owner: nothing behind it may be used.
    #[error("{0} has no usable endpoint")]
    NoEndpoints(String),
    /// The route's owner: it leads nowhere.
    #[error("the route leads nowhere: {0}")]
    Unrouted(String),
    /// The endpoint's or the network's.
    #[error("connect to {to}: {error}")]
    Connect {
        /// What was dialled.
        to: SocketAddr,
        /// What the system call said.
        error: Arc<io::Error>,
    },
    /// The peer's or ours: see the inner error.
    #[error("handshake with {with}: {error}")]
    Tls {
        /// The other end.
        with: SocketAddr,
        /// Why.
        error: Box<TlsError>,
    },
    /// The peer's: the tunnel broke, or does not follow its protocol.
    #[error("tunnel with {with}: {reason}")]
    Tunnel {
        /// The other end.
        with: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// The peer's answer to our request for a tunnel.
    #[error("the peer at {by} refused: {outcome}")]
    RefusedByPeer {
        /// The other end.
        by: SocketAddr,
        /// What its answer means.
        outcome: Outcome,
    },
    /// The peer's: it asked for something that this listener does not serve.
    #[error("refused target: {0}")]
    BadTarget(&'static str),
    /// The client's, or the application's: it does not speak HTTP.
    #[error("not HTTP: {0}")]
    NotHttp(String),
    /// A policy's.
    #[error("{}", .0.reason)]
    Denied(Denial),
    /// A limit of this agent.
    #[error("limit reached: {0}")]
    Overloaded(&'static str),
    /// Ended from inside: revoked or drained.
    #[error("{}", .0.reason)]
    Ended(Ending),
    /// One of the two applications ended it with a reset.
    #[error("reset by the {0}")]
    Reset(&'static str),
}

impl Failure {
    /// The word for it.
    pub(super) fn outcome(&self) -> Outcome {
        match self {
            Self::NoOrigDst => Outcome::NoOrigDst,
            Self::UnknownPod(_) => Outcome::Internal,
            Self::NoEndpoints(_) | Self::Unrouted(_) => Outcome::NoEndpoints,
            Self::Connect { error, .. } => of_connect(error),
            Self::Tls { error, .. } => error.outcome(),
            Self::Tunnel { .. } => Outcome::TunnelFailed,
            Self::RefusedByPeer { outcome, .. } => *outcome,
            Self::BadTarget(_) => Outcome::BadTarget,
            Self::NotHttp(_) => Outcome::NotHttp,
            Self::Denied(denial) => denial.outcome,
            Self::Overloaded(_) => Outcome::Overloaded,
            Self::Ended(ending) => ending.outcome,
            Self::Reset(_) => Outcome::AppReset,
        }
    }

    /// Whether another endpoint may be tried: only for a connect that failed at the endpoint, before any byte of
    /// the application was taken. What a policy or an identity decided holds for every endpoint.
    pub(super) fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { error, .. } => of_connect(error) != Outcome::Overloaded,
            Self::RefusedByPeer { outcome, .. } => matches!(
                outcome,
                Outcome::ConnectRefused | Outcome::ConnectTimeout | Outcome::ConnectUnreachable | Outcome::Overloaded
            ),
            Self::Tls { error, .. } => error.outcome() == Outcome::TlsFailed,
            Self::Tunnel { .. } | Self::NotHttp(_) => true,
            Self::NoOrigDst
            | Self::UnknownPod(_)
            | Self::NoEndpoints(_)
            | Self::Unrouted(_)
            | Self::BadTarget(_)
            | Self::Denied(_)
            | Self::Overloaded(_)
            | Self::Ended(_)
            | Self::Reset(_) => false,
        }
    }

    /// What the record says.
    pub(super) fn ending(&self) -> Ending {
        match self {
            Self::Ended(ending) => ending.clone(),
            Self::Denied(denial) => Ending {
                outcome: denial.outcome,
                rule: Some(Arc::clone(&denial.rule)),
                reason: denial.reason.to_string(),
            },
            other => Ending { outcome: other.outcome(), rule: None, reason: other.to_string() },
        }
    }
}

impl From<Denial> for Failure {
    fn from(denial: Denial) -> Self {
        Self::Denied(denial)
    }
}

/// What an error of `connect()` (or of making its socket) means.
fn of_connect(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => {
            Outcome::ConnectRefused
        }
        io::ErrorKind::TimedOut => Outcome::ConnectTimeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            Outcome::ConnectUnreachable
        }
        // No port left in the pod, no descriptor left in the agent, no memory.
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::OutOfMemory => Outcome::Overloaded,
        _ if matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE | nix::libc::ENOBUFS)) => {
            Outcome::Overloaded
        }
        _ => Outcome::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_connect_says_what_the_system_call_meant() {
        use nix::libc;
        for (errno, outcome, retryable) in [
            (libc::ECONNREFUSED, Outcome::ConnectRefused, true),
            (libc::ETIMEDOUT, Outcome::ConnectTimeout, true),
            (libc::EHOSTUNREACH, Outcome::ConnectUnreachable, true),
            (libc::ENETUNREACH, Outcome::ConnectUnreachable, true),
            (libc::EADDRNOTAVAIL, Outcome::Overloaded, false),
            (libc::EMFILE, Outcome::Overloaded, false),
            (libc::EINVAL, Outcome::Internal, true),
        ] {
            let error = Arc::new(io::Error::from_raw_os_error(errno));
            let failure = Failure::Connect { to: ([127, 0, 0, 1], 80).into(), error };
            assert_eq!((failure.outcome(), failure.is_retryable()), (outcome, retryable), "errno {errno}");
        }
    }
}
