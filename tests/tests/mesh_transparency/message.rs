//! HTTP/1 messages as an end reads them: what it can tell of one, and nothing that concerns one connection only.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use anyhow::{Context, Result, bail};

/// Headers of one hop (RFC 9110 §7.6.1), and how a body is delimited: not compared.
const HOP: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "te"];

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Response,
    /// The answer to HEAD, which has no body whatever its head says.
    ResponseToHead,
}

/// What is left of a connection.
pub struct Reader<'a> {
    pub stream: &'a TcpStream,
    /// Read and not yet looked at.
    pub rest: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub fn new(stream: &'a TcpStream) -> Self {
        Self { stream, rest: Vec::new() }
    }

    /// Reads once; `false`: the end.
    pub fn more(&mut self) -> std::io::Result<bool> {
        let mut bytes = [0; 16 << 10];
        let mut stream = self.stream;
        let count = stream.read(&mut bytes)?;
        self.rest.extend(&bytes[..count]);
        Ok(count > 0)
    }

    /// Up to `mark`, and the mark; `None`: it has ended before.
    pub fn until(&mut self, mark: &[u8]) -> std::io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(at) = self.rest.windows(mark.len()).position(|window| window == mark) {
                return Ok(Some(self.rest.drain(..at + mark.len()).collect()));
            }
            if !self.more()? {
                return Ok(None);
            }
        }
    }

    /// So many bytes, or as many as there are.
    fn exactly(&mut self, count: usize) -> std::io::Result<(Vec<u8>, bool)> {
        while self.rest.len() < count {
            if !self.more()? {
                return Ok((std::mem::take(&mut self.rest), false));
            }
        }
        Ok((self.rest.drain(..count).collect(), true))
    }

    /// Reads so many bytes and forgets them; gives how many there were.
    pub fn skip(&mut self, count: usize) -> std::io::Result<usize> {
        let mut skipped = 0;
        loop {
            let now = self.rest.len().min(count - skipped);
            skipped += now;
            self.rest.drain(..now);
            if skipped == count || !self.more()? {
                return Ok(skipped);
            }
        }
    }

    /// The next message, in a line: first line, headers in the order in which their names first occur, body, trailers,
    /// and how it ended if not in order.
    pub fn message(&mut self, kind: Kind) -> Result<String> {
        let head = match self.until(b"\r\n\r\n") {
            Ok(Some(head)) => head,
            Ok(None) => return Ok("end".to_owned()),
            Err(error) => return Ok(how(&error)),
        };
        let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let first = lines.next().context("a first line")?.escape_ascii().to_string();
        let headers: Vec<(String, String)> = lines.filter(|line| !line.is_empty()).map(field).collect::<Result<_>>()?;
        let value = |wanted: &str| {
            headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
        };
        let status: u16 = first.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let bodiless =
            kind == Kind::ResponseToHead || (kind == Kind::Response && (status < 200 || [204, 304].contains(&status)));
        let length = value("content-length").map(str::parse::<usize>).transpose()?;
        let chunked = value("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));
        let body = if bodiless {
            String::new()
        } else if chunked {
            self.chunks()
        } else if let Some(length) = length {
            self.exactly(length).map_or_else(|error| how(&error), |(body, whole)| shown(&body, whole))
        } else if kind == Kind::Request {
            String::new()
        } else {
            // Delimited by the connection's end.
            let mut body = std::mem::take(&mut self.rest);
            let mut stream = self.stream;
            let end = stream.read_to_end(&mut body);
            end.map_or_else(|error| how(&error), |_| shown(&body, true))
        };
        Ok(format!("{first} | {} | {body}", grouped(&headers)))
    }

    fn chunks(&mut self) -> String {
        let mut body = Vec::new();
        loop {
            let size = match self.until(b"\r\n") {
                Ok(Some(line)) => line,
                Ok(None) => return shown(&body, false),
                Err(error) => return format!("{} {}", shown(&body, false), how(&error)),
            };
            let digits: String =
                size.iter().map(|byte| char::from(*byte)).take_while(char::is_ascii_hexdigit).collect();
            let Ok(size) = usize::from_str_radix(&digits, 16) else { return format!("no chunk size: {digits}") };
            if size == 0 {
                return match self.trailers() {
                    Ok(trailers) => format!("{}{trailers}", shown(&body, true)),
                    Err(error) => format!("{} {error:#}", shown(&body, false)),
                };
            }
            match self.exactly(size + 2) {
                Ok((chunk, true)) => body.extend(&chunk[..size]),
                Ok((chunk, false)) => {
                    body.extend(&chunk[..size.min(chunk.len())]);
                    return shown(&body, false);
                }
                Err(error) => return format!("{} {}", shown(&body, false), how(&error)),
            }
        }
    }

    fn trailers(&mut self) -> Result<String> {
        let mut trailers = Vec::new();
        loop {
            let line = self.until(b"\r\n")?.context("no end of the trailers")?;
            if line == b"\r\n" {
                // Field names have no case, and a trailer's is nobody's business.
                let lower = |(name, value): (String, String)| (name.to_ascii_lowercase(), value);
                let trailers: Vec<(String, String)> = trailers.into_iter().map(lower).collect();
                return Ok(if trailers.is_empty() {
                    String::new()
                } else {
                    format!(" trailers {}", grouped(&trailers))
                });
            }
            trailers.push(field(line.strip_suffix(b"\r\n").unwrap_or(&line))?);
        }
    }
}

/// A body, short or by its length and its sum; cut short or whole.
fn shown(body: &[u8], whole: bool) -> String {
    let end = if whole { "" } else { " and then cut short" };
    if body.len() <= 200 {
        return format!("{}{end}", body.escape_ascii());
    }
    let sum = body.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!("{} bytes, {sum:x}{end}", body.len())
}

fn how(error: &std::io::Error) -> String {
    match error.kind() {
        // An end in the middle and a reset there are the same to who reads: an error, and no short success.
        ErrorKind::ConnectionReset => "and then cut short".to_owned(),
        kind => format!("{kind:?}"),
    }
}

fn field(line: &[u8]) -> Result<(String, String)> {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { bail!("no header: {}", line.escape_ascii()) };
    let (name, value) = line.split_at(colon);
    Ok((name.escape_ascii().to_string(), value[1..].trim_ascii().escape_ascii().to_string()))
}

fn grouped(headers: &[(String, String)]) -> String {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in headers {
        let name = name.to_ascii_lowercase();
        if !HOP.contains(&&*name) && !names.contains(&name) {
            names.push(name);
        }
    }
    let of = |wanted: &String| {
        let same = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        same.map(|(name, value)| format!("{name}: {}", shown(value.as_bytes(), true))).collect::<Vec<_>>().join("; ")
    };
    names.iter().map(of).collect::<Vec<_>>().join("; ")
}
