//! The process' own log, on stderr: what is in it, changed while it runs, and its newest lines, kept for a report.
//! (The access log is another thing, and goes to stdout.)

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

/// INFO and worse, without the Kubernetes client: it has an ERROR for each attempt of each watch while the API server
/// is away, which the source says once.
const DEFAULT: &str = "info,kube_client=off";
/// Newest lines that are kept, in bytes: some hours of a quiet agent, the last minutes of a busy one.
const KEPT: usize = 256 * 1024;
/// Of one line; it is whole on stderr.
const LONGEST: usize = 4 * 1024;

type Apply = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// The log of this process, once it is begun.
static LOG: OnceLock<OwnLog> = OnceLock::new();

/// What is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// Now.
    pub present: String,
    /// As the process was started.
    pub given: String,
    /// Counts the changes: a change that is to end with time ends only itself.
    pub turn: u64,
}

struct OwnLog {
    apply: Apply,
    level: Mutex<Level>,
    newest: Mutex<Newest>,
}

#[derive(Default)]
struct Newest {
    lines: VecDeque<String>,
    bytes: usize,
}

/// Begins the log: `filter` chooses what is in it, else INFO and worse. A second call changes nothing.
pub fn begin(json: bool, filter: Option<String>) {
    let given = filter.filter(|text| EnvFilter::try_new(text).is_ok()).unwrap_or_else(|| DEFAULT.to_owned());
    let (filter, handle) = reload::Layer::new(EnvFilter::new(&given));
    let apply = Box::new(move |filter| handle.reload(filter).map_err(|error| error.to_string()));
    let level = Mutex::new(Level { present: given.clone(), given, turn: 0 });
    if LOG.set(OwnLog { apply, level, newest: Mutex::default() }).is_ok() {
        let lines = tracing_subscriber::fmt::layer().with_writer(Tee).with_ansi(false);
        let lines = if json { lines.json().boxed() } else { lines.boxed() };
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    }
}

/// What is in the log; `None`: this process has none.
#[must_use]
pub fn level() -> Option<Level> {
    LOG.get().map(|log| lock(&log.level).clone())
}

/// Changes what is in the log: `debug`, or by target, as `info,mesh_agent::capture=debug`; `None`: as it was given.
///
/// # Errors
/// For what is no filter, with the form.
pub fn set_level(filter: Option<&str>) -> Result<Level, String> {
    let log = LOG.get().ok_or("this process has no log")?;
    let mut level = lock(&log.level);
    let text = filter.unwrap_or(&level.given).to_owned();
    let filter = EnvFilter::try_new(&text)
        .map_err(|error| format!("`{text}`: {error}; a level (error, warn, info, debug, trace) or TARGET=LEVEL,…"))?;
    (log.apply)(filter)?;
    level.present = text;
    level.turn += 1;
    Ok(level.clone())
}

/// The level as it was given, unless it was changed since `turn`.
pub fn revert(turn: u64) {
    if level().is_some_and(|level| level.turn == turn) {
        // What the process was started with is a filter.
        let _ = set_level(None);
        tracing::info!("the level of the log is as it was given again");
    }
}

/// The newest lines, oldest first.
#[must_use]
pub fn newest() -> Vec<String> {
    LOG.get().map_or_else(Vec::new, |log| lock(&log.newest).lines.iter().cloned().collect())
}

impl Newest {
    fn push(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line.get(..LONGEST).unwrap_or(line)).trim_end().to_owned();
        self.bytes += text.len();
        self.lines.push_back(text);
        while self.bytes > KEPT
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes each line to stderr, and keeps it.
#[derive(Clone, Copy)]
struct Tee;

impl<'a> MakeWriter<'a> for Tee {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl Write for Tee {
    /// A line at a time: so the formatter calls it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(log) = LOG.get() {
            lock(&log.newest).push(line);
        }
        io::stderr().lock().write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_kept_within_their_bound() {
        let mut newest = Newest::default();
        newest.push(b"first\n");
        assert_eq!(newest.lines, ["first"]);
        for number in 0..2_000 {
            newest.push(format!("{number} {}\n", "x".repeat(1_000)).as_bytes());
        }
        assert!(newest.bytes <= KEPT && newest.lines.len() > 200, "{} lines", newest.lines.len());
        assert!(newest.lines.back().is_some_and(|line| line.starts_with("1999 ")));
        newest.push(&vec![b'y'; 2 * LONGEST]);
        assert_eq!(newest.lines.back().map(String::len), Some(LONGEST));
        assert_eq!(newest.bytes, newest.lines.iter().map(String::len).sum::<usize>());
    }
}
