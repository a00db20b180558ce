//! One record writes the access-log line and the metrics together.
