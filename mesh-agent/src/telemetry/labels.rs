//! The closed label sets of the connection metrics, and the words that the access log shares with them.
//!
//! Every value is either a variant of an enum of this file or the name of a declared object; what a peer or an
//! application can choose freely (addresses, undeclared names) never becomes a label.

use std::fmt::Write as _;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder};
use serde::{Serialize, Serializer};

use super::store::LabelSet;

/// Stands for a name that no object declares.
pub const UNKNOWN: &str = "unknown";
/// Stands for what a request does not have.
pub const NONE: &str = "none";
/// Stands for every name once the number of series has reached its bound.
pub const OTHER: &str = "other";

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// The word in logs and metrics.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
                encoder.write_str(self.as_str())
            }
        }
    };
}

words!(
    /// Which side of a connection reports it, relative to the pod.
    Reporter {
        /// The agent of the destination pod.
        Inbound = "inbound",
        /// The agent of the source pod.
        Outbound = "outbound",
    }
);
words!(
    /// How the bytes travel (design §1).
    Lane {
        /// Between two pods of one node, without the agent.
        Native = "native",
        /// Inside a tunnel between two agents.
        Tunnel = "tunnel",
        /// Request by request, parsed by the agent.
        Http = "http",
        /// As the application sent them.
        Plaintext = "plaintext",
    }
);
words!(
    /// What protects the bytes on the wire between the pods.
    Security {
        /// The bytes never left the node, and its kernel proved both sides.
        Kernel = "kernel",
        /// TLS 1.3 with both sides proven.
        MutualTls = "mutual_tls",
        /// Nothing of the mesh's.
        None = "none",
    }
);
words!(
    /// What is spoken inside a tunnel.
    Wire {
        /// HTTP/2 CONNECT, as Istio's ztunnel speaks it.
        Hbone = "hbone",
        /// One tunnel per TLS connection, between agents of this project.
        Raw = "raw",
    }
);

words!(
    /// How a request ended.
    RequestOutcome {
        /// The application answered it to the end.
        Ok = "ok",
        /// The mesh answered it itself.
        Answered = "answered",
        /// Something else is spoken on the connection or stream from here on.
        Switched = "switched",
        /// The client has reset its stream.
        ClientAborted = "client_aborted",
        /// The client's connection ended before the answer did.
        ClientLost = "client_lost",
        /// The application has reset its stream.
        ServerAborted = "server_aborted",
        /// The application's connection ended before the answer did.
        ServerLost = "server_lost",
        /// The rule's time was over before the answer's end.
        Timeout = "timeout",
        /// The rules no longer permit the client's connection.
        Revoked = "revoked",
        /// The agent was stopped.
        AgentDrained = "agent_drained",
    }
);

/// A declared Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// Namespace of the Service.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The labels of the per-connection counters. `None` prints as [`UNKNOWN`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Which side reports.
    pub reporter: Reporter,
    /// Workload (dashboard name) of the client.
    pub source_workload: Option<Arc<str>>,
    /// Its namespace.
    pub source_namespace: Option<Arc<str>>,
    /// The Service that the application dialled.
    pub destination_service: Option<ServiceName>,
    /// Workload (dashboard name) that served.
    pub destination_workload: Option<Arc<str>>,
    /// Its namespace.
    pub destination_namespace: Option<Arc<str>>,
    /// How the bytes travelled.
    pub lane: Lane,
    /// What protected them.
    pub security: Security,
}

impl LabelSet for Labels {
    fn overflow(&self) -> Self {
        let other = || Some(Arc::from(OTHER));
        Self {
            reporter: self.reporter,
            source_workload: other(),
            source_namespace: other(),
            destination_service: Some(ServiceName { namespace: OTHER.into(), name: OTHER.into() }),
            destination_workload: other(),
            destination_namespace: other(),
            lane: self.lane,
            security: self.security,
        }
    }
}

impl EncodeLabelSet for Labels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        let name = |value: &Option<Arc<str>>| value.clone().unwrap_or_else(|| UNKNOWN.into());
        let service = self.destination_service.as_ref().map_or_else(|| UNKNOWN.to_owned(), ToString::to_string);
        put(encoder, "reporter", &self.reporter)?;
        put(encoder, "source_workload", &name(&self.source_workload))?;
        put(encoder, "source_namespace", &name(&self.source_namespace))?;
        put(encoder, "destination_service", &service)?;
        put(encoder, "destination_workload", &name(&self.destination_workload))?;
        put(encoder, "destination_namespace", &name(&self.destination_namespace))?;
        put(encoder, "lane", &self.lane)?;
        put(encoder, "security", &self.security)
    }
}

/// The labels of the per-request counters: those of a connection, and the route's rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    /// As a connection would have them.
    pub connection: Labels,
    /// The rule that it met, as `explain` names it; `None` prints as [`NONE`].
    pub route: Option<Arc<str>>,
}

impl LabelSet for RequestLabels {
    fn overflow(&self) -> Self {
        Self { connection: self.connection.overflow(), route: Some(OTHER.into()) }
    }
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        self.connection.encode(encoder)?;
        put(encoder, "route", &self.route.as_deref().unwrap_or(NONE))
    }
}

pub(super) fn put(encoder: &mut LabelSetEncoder<'_>, key: &str, value: &impl EncodeLabelValue) -> std::fmt::Result {
    use prometheus_client::encoding::EncodeLabelKey;
    let mut label = encoder.encode_label();
    let mut label_key = label.encode_label_key()?;
    EncodeLabelKey::encode(&key, &mut label_key)?;
    let mut label_value = label_key.encode_label_value()?;
    value.encode(&mut label_value)?;
    label_value.finish()
}

/// [`Labels`] with the outcome, for the counter of ended connections.
pub(super) struct Ended<'a>(pub &'a Labels, pub crate::model::outcome::Outcome);

impl EncodeLabelSet for Ended<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
        self.0.encode(encoder)?;
        put(encoder, "outcome", &self.1.as_str())
    }
}
