//! `--log-format`, and the log that it is of.

use crate::config::{self, LogFormat};
use crate::telemetry::own_log;

/// Starts the process' own log, on stderr; `RUST_LOG` chooses what is in it. A second call changes nothing.
pub fn init(format: LogFormat) {
    own_log::begin(format == LogFormat::Json, config::log_filter());
}
