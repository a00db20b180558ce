//! What a request may ask of the server in its query: `delay=1s`, `headers=name:value,…`, `codes=500:1,200:1`.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};

/// What one request asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Knobs {
    /// Wait this long before answering.
    pub delay: Duration,
    /// Set these in the answer.
    pub headers: Vec<(String, String)>,
    /// Status codes, and how many times each in turn.
    codes: Vec<(u16, usize)>,
}

impl Knobs {
    /// Reads a query; what is not asked for is as without it.
    pub fn parse(query: &str) -> Result<Self> {
        let mut knobs = Self::default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            let pairs = || value.split(',').filter_map(|pair| pair.split_once(':'));
            match name {
                "delay" => knobs.delay = duration(value)?,
                "headers" => knobs.headers = pairs().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
                "codes" => {
                    let read = |(code, times): (&str, &str)| Ok((code.parse()?, times.parse()?));
                    knobs.codes = pairs().map(read).collect::<Result<_>>().with_context(|| format!("codes={value}"))?;
                }
                _ => {}
            }
        }
        Ok(knobs)
    }
}

/// `1s`, `1.5s`, `200ms`.
fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 0.001),
        None => (text.strip_suffix('s').with_context(|| format!("delay={text} is neither s nor ms"))?, 1.0),
    };
    let number: f64 = number.parse().with_context(|| format!("delay={text}"))?;
    Duration::try_from_secs_f64(number * unit).with_context(|| format!("delay={text}"))
}

/// How often each target was asked: `codes` go by turns, so that what a retry meets is certain.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<String, usize>>);

impl Turns {
    /// The status of the next answer to `target`.
    pub fn next(&self, target: &str, knobs: &Knobs) -> u16 {
        let total: usize = knobs.codes.iter().map(|(_, times)| times).sum();
        if total == 0 {
            return 200;
        }
        let mut turns = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let turn = turns.entry(target.to_owned()).or_default();
        let mut at = *turn % total;
        *turn += 1;
        for (code, times) in &knobs.codes {
            if at < *times {
                return *code;
            }
            at -= times;
        }
        200
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read() {
        let knobs = Knobs::parse("a=b&delay=1.5s&headers=x:y,z:w&codes=500:1,200:2").expect("knobs");
        assert_eq!(knobs.delay, Duration::from_millis(1500));
        assert_eq!(knobs.headers, [("x".to_owned(), "y".to_owned()), ("z".to_owned(), "w".to_owned())]);
        let turns = Turns::default();
        let statuses: Vec<u16> = (0..4).map(|_| turns.next("/", &knobs)).collect();
        assert_eq!(statuses, [500, 200, 200, 500]);
        assert_eq!(turns.next("/other", &knobs), 500, "each target has turns of its own");
        assert_eq!(turns.next("/", &Knobs::default()), 200);
        assert!(Knobs::parse("delay=5").is_err() && Knobs::parse("codes=x:1").is_err());
    }
}
