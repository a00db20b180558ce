//! Options of `run` about what it tells of requests.

use crate::telemetry::{RequestLog, Settings};

/// As they stand on the command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TelemetryArgs {
    /// Which requests of the http lane have a line in the access log: `all`, `failures` (status 400 or more, gRPC
    /// status other than 0, broken off) or `none`.
    #[arg(long, env = "MESH_REQUEST_LOG", default_value = "all")]
    request_log: String,
}

impl TelemetryArgs {
    /// Checks them; adds what is wrong to `errors`.
    pub(super) fn check(&self, errors: &mut Vec<String>) -> Option<Settings> {
        let request_log = super::keep(errors, parse_request_log(&self.request_log));
        Some(Settings { request_log: request_log? })
    }
}

fn parse_request_log(value: &str) -> Result<RequestLog, String> {
    match value {
        "all" => Ok(RequestLog::All),
        "failures" => Ok(RequestLog::Failures),
        "none" => Ok(RequestLog::None),
        _ => Err(format!("--request-log `{value}`: expected all, failures or none")),
    }
}
