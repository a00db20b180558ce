//! `--log-format`, and the log that it is of.

use crate::config::{self, LogFormat};
use crate::telemetry::own_log;

/// Starts the process' own log, on stderr; `RUST_LOG` chooses what is in it. A second call changes nothing.
pub fn init(format: LogFormat) {
    own_log::begin(format == LogFormat::Json, config::log_filter());
}

/// Reads `--log-format`, for clap.
///
/// # Errors
/// The forms there are.
pub(super) fn format(value: &str) -> Result<LogFormat, &'static str> {
    match value {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected text or json"),
    }
}
