//! The process' own log, on stderr. (The access log is another thing, and goes to stdout.)

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// INFO and worse, without the Kubernetes client: it has an ERROR for each attempt of each watch while the API server
/// is away, which the source says once.
const DEFAULT: &str = "info,kube_client=off";

/// Starts the log: `RUST_LOG` chooses what is in it, else INFO and worse. A second call changes nothing.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
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
