//! What the admin socket answers about the agent itself: its own log, and all of it together.

use std::time::Duration;

use crate::admin::status::Status;
use crate::admin::{LogAnswer, LogRequest, Report};
use crate::config::Config;
use crate::telemetry::{Registry, own_log};

/// Changes what is in the log, if that is asked for. Within a runtime.
pub(super) fn log(request: &LogRequest) -> LogAnswer {
    let changed = request.filter.as_deref().map(|filter| own_log::set_level(Some(filter)));
    let refused = match changed {
        Some(Ok(level)) => {
            tracing::info!(filter = level.present, seconds = request.seconds, "the level of the log was changed");
            if request.seconds > 0 {
                let lasts = Duration::from_secs(request.seconds);
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    own_log::revert(level.turn);
                });
            }
            None
        }
        Some(Err(reason)) => Some(reason),
        None => None,
    };
    let (present, given) = own_log::level().map_or_else(Default::default, |level| (level.present, level.given));
    LogAnswer { present, given, refused }
}

/// All that helps to find a fault. The options name files with secrets, never what is in them.
pub(super) fn report(status: Status, config: &Config, registry: &Registry) -> Report {
    let metrics = registry.encode().unwrap_or_else(|error| error.to_string());
    Report { status, options: format!("{config:#?}"), metrics, log: own_log::newest() }
}
