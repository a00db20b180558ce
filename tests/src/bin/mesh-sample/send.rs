//! Datagrams, sent in every way.

use anyhow::Result;
use mesh_tests::datagram::WAYS;
use serde_json::{Map, Value, json};

use crate::options::Options;
use crate::servers::print_line;

/// Tells for each way whether it was `sent`, or the error.
pub fn send(options: &Options) -> Result<()> {
    let to = options.target()?;
    let outcome = |sent: std::io::Result<()>| match sent {
        Ok(()) => "sent".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    let outcomes: Map<String, Value> =
        WAYS.iter().map(|(how, way)| ((*how).to_owned(), json!(outcome(way(to))))).collect();
    print_line(&Value::Object(outcomes));
    Ok(())
}
