//! Options of `run` about what it tells of requests.

use crate::telemetry::trace::{self, Endpoint, Ratio};
use crate::telemetry::{RequestLog, Settings};

/// As they stand on the command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TelemetryArgs {
    /// Which requests of the http lane have a line in the access log: `all`, `failures` (status 400 or more, gRPC
    /// status other than 0, broken off) or `none`.
    #[arg(long, env = "MESH_REQUEST_LOG", default_value = "all")]
    request_log: String,
    /// Collector of spans, OTLP over HTTP in plaintext: `http://HOST[:PORT]`, a base for `v1/traces`. Without it there
    /// are no spans, and no trace header is touched.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Of requests that come without a decision on their trace, the share whose spans are recorded, from 0 to 1. One in
    /// a hundred shows where time goes and costs next to nothing; what a client has decided is kept.
    #[arg(long, env = "MESH_TRACE_RATIO", default_value = "0.01")]
    trace_ratio: String,
}

impl TelemetryArgs {
    /// Checks them; adds what is wrong to `errors`.
    pub(super) fn check(&self, errors: &mut Vec<String>) -> Option<Settings> {
        let request_log = super::keep(errors, parse_request_log(&self.request_log));
        let endpoint = super::keep(errors, self.otlp_endpoint.as_deref().map(parse_endpoint).transpose());
        let ratio = super::keep(errors, parse_ratio(&self.trace_ratio));
        let (ratio, endpoint) = (ratio?, endpoint?);
        let tracing = endpoint.map(|endpoint| trace::Settings { endpoint, ratio });
        Some(Settings { request_log: request_log?, tracing })
    }
}

fn parse_endpoint(value: &str) -> Result<Endpoint, String> {
    Endpoint::parse(value).map_err(|error| format!("--otlp-endpoint `{value}`: {error}"))
}

fn parse_ratio(value: &str) -> Result<Ratio, String> {
    let ratio = value.parse().ok().and_then(Ratio::of);
    ratio.ok_or_else(|| format!("--trace-ratio `{value}`: not a number from 0 to 1"))
}

fn parse_request_log(value: &str) -> Result<RequestLog, String> {
    match value {
        "all" => Ok(RequestLog::All),
        "failures" => Ok(RequestLog::Failures),
        "none" => Ok(RequestLog::None),
        _ => Err(format!("--request-log `{value}`: expected all, failures or none")),
    }
}
