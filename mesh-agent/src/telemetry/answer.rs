//! Requests that the mesh answered itself: a line of the access log and a counter, so that nobody takes such an answer
//! for the application's.

use std::time::SystemTime;

use serde::Serialize;

use super::Telemetry;
use super::access_log::{Side, rfc3339};
use super::labels::{Lane, Reporter, ServiceName};
use super::record::{Party, side};

/// One such request. Its query is not logged: secrets travel there.
#[derive(Clone, Debug)]
pub struct Answered<'a> {
    /// Which side reports.
    pub reporter: Reporter,
    /// The client.
    pub source: &'a Party,
    /// The server, as far as it is known.
    pub destination: &'a Party,
    /// The Service that was dialled.
    pub service: Option<&'a ServiceName>,
    /// The request's method.
    pub method: &'a str,
    /// Its path.
    pub path: &'a str,
    /// The answer's status.
    pub status: u16,
    /// Why, in a word: the header `x-mesh-agent-reason` has it too.
    pub reason: &'static str,
    /// Why, in a sentence that names the object.
    pub detail: &'a str,
    /// The policy that refused it.
    pub rule: Option<&'a str>,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    reporter: Reporter,
    source: Side<'a>,
    destination: Side<'a>,
    lane: Lane,
    method: &'a str,
    path: &'a str,
    status: u16,
    answered: &'static str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
}

impl Telemetry {
    /// Counts and logs a request that the mesh answered itself.
    pub fn answered(&self, request: &Answered<'_>) {
        self.metrics().answered(request.reporter, request.reason);
        let mut destination = side(request.destination);
        destination.service = request.service.map(ToString::to_string);
        self.access_log().write(&Line {
            time: rfc3339(SystemTime::now()),
            reporter: request.reporter,
            source: side(request.source),
            destination,
            lane: Lane::Http,
            method: request.method,
            path: request.path,
            status: request.status,
            answered: request.reason,
            detail: request.detail,
            rule: request.rule,
        });
    }
}
