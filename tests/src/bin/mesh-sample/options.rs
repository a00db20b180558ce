//! `--name value` or `--name=value` pairs, each of which may be given several times.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// The pairs, in order.
pub struct Options {
    pairs: Vec<(String, String)>,
}

impl Options {
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut pairs = Vec::new();
        while let Some(argument) = arguments.next() {
            // The one short option, as curl has it.
            let long = if argument == "-H" { Some("header") } else { argument.strip_prefix("--") };
            let Some(name) = long else { bail!("`{argument}` is no option") };
            if let Some((name, value)) = name.split_once('=') {
                pairs.push((name.to_owned(), value.to_owned()));
                continue;
            }
            let value = arguments.next().with_context(|| format!("--{name} needs a value"))?;
            pairs.push((name.to_owned(), value));
        }
        Ok(Self { pairs })
    }

    pub fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of `name`, which must be given.
    pub fn required<T: FromStr>(&self, name: &str) -> Result<T> {
        let value = self.all(name).next().with_context(|| format!("--{name} is missing"))?;
        value.parse().map_err(|_| anyhow!("--{name}: `{value}` is not of its kind"))
    }

    /// The value of `name`, or `default`.
    pub fn or<T: FromStr>(&self, name: &str, default: T) -> Result<T> {
        if self.has(name) { self.required(name) } else { Ok(default) }
    }

    /// `--name-ms` as a duration.
    pub fn millis(&self, name: &str, default: u64) -> Result<Duration> {
        Ok(Duration::from_millis(self.or(name, default)?))
    }

    /// Every `--to`, which may also be a list with commas.
    pub fn targets(&self) -> Result<Vec<SocketAddr>> {
        let targets: Result<Vec<SocketAddr>> = self
            .all("to")
            .flat_map(|list| list.split(','))
            .map(|one| one.parse().map_err(|_| anyhow!("--to: `{one}` is not IP:PORT")))
            .collect();
        let targets = targets?;
        if targets.is_empty() { Err(anyhow!("--to is missing")) } else { Ok(targets) }
    }

    /// The only `--to`.
    pub fn target(&self) -> Result<SocketAddr> {
        self.required("to")
    }
}
