//! A request's line of the access log, and how its parts are written.

use std::sync::Arc;

use http::{Uri, Version};
use serde::Serialize;
use serde_json::value::RawValue;

use super::access_log::Side;
use super::labels::{Lane, Reporter, RequestOutcome, Security};

/// As much of a path as a line shows: a client chooses it, and one line is not to take the place of many.
const MAX_PATH_BYTES: usize = 2048;

/// One line. The field names are the vocabulary of the metrics' labels.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    /// When the request was over, RFC 3339, UTC.
    pub time: String,
    pub reporter: Reporter,
    pub source: &'a RawValue,
    pub destination: &'a RawValue,
    pub lane: Lane,
    pub security: Security,
    pub method: &'a str,
    /// As the client sent it, without its query: secrets travel there.
    pub path: &'a str,
    pub protocol: &'static str,
    /// The rule that it met.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u8>,
    pub outcome: RequestOutcome,
    /// Why the mesh answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered: Option<&'static str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    pub detail: &'a str,
    /// The policy that refused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// The AUDIT policies that matched.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub audited: &'a [Arc<str>],
    /// Of the body, as sent on by the last attempt.
    pub request_bytes: u64,
    /// Of the answer's body.
    pub response_bytes: u64,
    /// From the request's head to its answer's end.
    pub duration_ms: f64,
    /// To its answer's head: the sum of the four below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_ms: Option<f64>,
    /// Of that, while the other side had the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_ms: Option<f64>,
    /// Of that, while connections were opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    /// Of that, between attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<f64>,
    /// Of that, the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_ms: Option<f64>,
    /// How often it was sent, or tried to be.
    pub attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
}

/// One side, ready to stand in many lines.
pub(super) fn render(side: &Side<'_>) -> Box<RawValue> {
    serde_json::value::to_raw_value(side).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// The path as it was sent; of a CONNECT what it asks for.
pub(super) fn path(uri: &Uri) -> &str {
    let path = match uri.path() {
        "" => uri.authority().map_or("", http::uri::Authority::as_str),
        path => path,
    };
    let end = (0..=path.len().min(MAX_PATH_BYTES)).rev().find(|end| path.is_char_boundary(*end));
    path.get(..end.unwrap_or(0)).unwrap_or_default()
}

pub(super) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_without_its_query_and_cut() {
        let shown = |uri: &str| path(&uri.parse().unwrap()).to_owned();
        assert_eq!(shown("/a%2Fb//c?token=secret"), "/a%2Fb//c");
        assert_eq!(shown("http://shop:80/a?b"), "/a");
        assert_eq!(shown("shop:443"), "shop:443");
        assert_eq!(shown("*"), "*");
        assert_eq!(shown(&format!("/{}", "x".repeat(5000))).len(), MAX_PATH_BYTES);
    }
}
