//! The process' own log, on stderr. (The access log is another thing, and goes to stdout.)

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Starts the log: `RUST_LOG` chooses what is in it, else INFO and worse. A second call changes nothing.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
