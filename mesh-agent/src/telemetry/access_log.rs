//! One JSON line per connection, written by one thread.
//!
//! The data path appends a finished line to a bounded buffer and goes on; it never waits for the disk or for
//! whoever reads the pipe. When the buffer is full the line is dropped and counted.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::labels::{Lane, Reporter, Security};

/// About 2,000 lines: one burst of short connections, and a bound on what a stalled reader can cost.
const MAX_BUFFERED_BYTES: usize = 1 << 20;
/// What a line takes, most of the time: without growing on the way.
const LINE_BYTES: usize = 1024;
/// The writer wakes at most this often, so that a busy node pays one write for many lines.
const BATCH: Duration = Duration::from_millis(20);

/// One side of a connection as the log shows it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Side<'a> {
    /// Dashboard name of the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload: Option<&'a str>,
    /// Namespace of the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<&'a str>,
    /// The SPIFFE id that was proven; absent when nothing was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// `namespace/name` of the Service that was dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Port, where it means something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// One line. The field names are the vocabulary of the metrics' labels.
#[derive(Clone, Debug, Serialize)]
pub struct Line<'a> {
    /// When the connection ended, RFC 3339, UTC.
    pub time: String,
    /// Which side reports.
    pub reporter: Reporter,
    /// The client.
    pub source: Side<'a>,
    /// The server.
    pub destination: Side<'a>,
    /// What the application dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orig_dst: Option<SocketAddr>,
    /// How the bytes travelled.
    pub lane: Lane,
    /// What protected them.
    pub security: Security,
    /// The policy that decided, `namespace/name`; absent when none selects the workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    /// The AUDIT policies that matched.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub audited: &'a [Arc<str>],
    /// How it ended: a word of the outcome metric.
    pub outcome: &'static str,
    /// One sentence on why, where the outcome alone does not say it.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: &'a str,
    /// Bytes that the source sent.
    pub bytes_sent: u64,
    /// Bytes that the source received.
    pub bytes_received: u64,
    /// From accept to end, milliseconds.
    pub duration_ms: f64,
    /// Until the other side stood, milliseconds; absent when it never did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_ms: Option<f64>,
    /// Snapshot generation of the decision.
    pub generation: u64,
    /// The client's smoothed round-trip time in milliseconds; native connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub round_trip_ms: Option<f64>,
    /// Segments that the client sent again; native connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u32>,
}

#[derive(Debug, Default)]
struct Queue {
    buffer: Vec<u8>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    dropped: AtomicU64,
    failed: AtomicU64,
}

/// Where lines go. Dropping it writes out what is buffered and ends the thread.
#[derive(Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
}

impl AccessLog {
    /// Starts the writer thread over `out`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(out: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let writer =
            std::thread::Builder::new().name("access-log".into()).spawn(move || write_batches(&theirs, out))?;
        Ok(Self { shared, writer: Some(writer) })
    }

    /// Queues one line; drops and counts it when the buffer is full. Never blocks on IO.
    pub fn write(&self, line: &impl Serialize) {
        let mut text = Vec::with_capacity(LINE_BYTES);
        if serde_json::to_writer(&mut text, line).is_err() {
            self.shared.dropped.fetch_add(1, Relaxed);
            return;
        }
        text.push(b'\n');
        let was_empty = {
            let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.buffer.len().saturating_add(text.len()) > MAX_BUFFERED_BYTES {
                self.shared.dropped.fetch_add(1, Relaxed);
                return;
            }
            let was_empty = queue.buffer.is_empty();
            queue.buffer.append(&mut text);
            was_empty
        };
        if was_empty {
            self.shared.filled.notify_one();
        }
    }

    /// Lines dropped because the buffer was full, since the start.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Relaxed)
    }

    /// Writes that the sink refused, since the start.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Relaxed)
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.filled.notify_one();
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing left to write.
            let _ = writer.join();
        }
    }
}

fn write_batches(shared: &Shared, mut out: Box<dyn Write + Send>) {
    let mut batch = Vec::new();
    loop {
        let closed = {
            let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            while queue.buffer.is_empty() && !queue.closed {
                queue = shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut batch, &mut queue.buffer);
            queue.closed
        };
        if !batch.is_empty() && out.write_all(&batch).and_then(|()| out.flush()).is_err() {
            shared.failed.fetch_add(1, Relaxed);
        }
        batch.clear();
        // A burst's buffer is given back; an ordinary batch stays within this.
        batch.shrink_to(64 * 1024);
        if closed && shared.queue.lock().unwrap_or_else(PoisonError::into_inner).buffer.is_empty() {
            return;
        }
        // Only a closed log skips the pause: then nobody adds lines any more.
        if !closed {
            let queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            drop(shared.filled.wait_timeout_while(queue, BATCH, |queue| !queue.closed));
        }
    }
}

/// `time` as RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Civil from days, counting years from March so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn line(reason: &str) -> Line<'_> {
        Line {
            time: rfc3339(SystemTime::UNIX_EPOCH),
            reporter: Reporter::Outbound,
            source: Side::default(),
            destination: Side::default(),
            orig_dst: None,
            lane: Lane::Tunnel,
            security: Security::MutualTls,
            rule: None,
            audited: &[],
            outcome: "ok",
            reason,
            bytes_sent: 1,
            bytes_received: 2,
            duration_ms: 0.5,
            connect_ms: None,
            generation: 3,
            round_trip_ms: None,
            retransmits: None,
        }
    }

    #[test]
    fn dates_are_civil_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    struct Pipe(mpsc::Sender<Vec<u8>>);

    impl Write for Pipe {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.send(data.to_vec()).map_err(|_| std::io::ErrorKind::BrokenPipe)?;
            Ok(data.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_one_json_object_even_with_hostile_text() {
        let (sender, receiver) = mpsc::channel();
        let log = AccessLog::start(Box::new(Pipe(sender))).unwrap();
        log.write(&line("a \"quoted\"\nnew line"));
        log.write(&line(""));
        drop(log);
        let text = String::from_utf8(receiver.iter().flatten().collect()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0]["reason"], "a \"quoted\"\nnew line");
        assert_eq!(lines[0]["security"], "mutual_tls");
        assert!(lines[1].get("reason").is_none());
    }

    struct Stalled(mpsc::Receiver<()>);

    impl Write for Stalled {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            // Blocks until the test lets go, as a full pipe would.
            let _ = self.0.recv();
            Ok(data.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_reader_costs_lines_and_never_blocks_the_data_path() {
        let (release, stalled) = mpsc::channel();
        let log = AccessLog::start(Box::new(Stalled(stalled))).unwrap();
        let text = "x".repeat(1_000);
        for _ in 0..3 * MAX_BUFFERED_BYTES / 1_000 {
            log.write(&line(&text));
        }
        assert!(log.dropped() > 1_000, "{}", log.dropped());
        drop(release);
    }
}
