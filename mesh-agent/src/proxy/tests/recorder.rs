//! An application that writes down every request it gets, and reads none that it could read in another way.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::rig::soon;

/// What a connection brought: whole requests as `METHOD target body`, then what was wrong with the rest.
pub(super) type Heard = Vec<String>;

/// What a line begins with that tells of something which could be read in another way.
pub(super) const AMBIGUOUS: &str = "ambiguous: ";

/// A request, and how many bytes it took.
type Read = Option<(Request, usize)>;

/// One request as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) struct Request {
    pub(in crate::proxy) line: String,
    pub(in crate::proxy) headers: Vec<(String, String)>,
    pub(in crate::proxy) body: Vec<u8>,
    pub(in crate::proxy) trailers: Vec<(String, String)>,
}

/// What `serve` has to tell of the connections that come by `listener` until `over`, each served to its end.
pub(super) async fn heard<T, F>(
    listener: &TcpListener,
    serve: fn(TcpStream) -> F,
    over: impl Future<Output = T>,
) -> (T, Heard)
where
    F: Future<Output = Heard> + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut over = std::pin::pin!(over);
    let done = loop {
        tokio::select! {
            done = &mut over => break done,
            accepted = listener.accept() => {
                connections.spawn(serve(accepted.unwrap().0));
            }
        }
    };
    let mut heard = Heard::new();
    while let Some(connection) = soon(connections.join_next()).await {
        heard.extend(connection.unwrap());
    }
    (done, heard)
}

/// Reads requests of HTTP/1 and answers them.
pub(super) async fn record(mut stream: TcpStream) -> Heard {
    let (mut heard, mut bytes) = (Heard::new(), Vec::new());
    loop {
        match request(&bytes) {
            Err(why) => {
                heard.push(format!("{AMBIGUOUS}{why} in {}", bytes.escape_ascii()));
                return heard;
            }
            Ok(Some((request, length))) => {
                bytes.drain(..length);
                let target = request.line.rsplit_once(' ').map_or(&*request.line, |(line, _)| line);
                heard.push(format!("{target} {}", String::from_utf8_lossy(&request.body)));
                // Nobody switches to another protocol here.
                let status = if request.line.starts_with("CONNECT ") { "405 No" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return heard;
                }
            }
            Ok(None) => match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return heard,
                Ok(_) => {}
            },
        }
    }
}

/// The first request of `bytes`; `None`: it is not whole. Everything that RFC 9112 forbids a sender is an error.
pub(in crate::proxy) fn request(bytes: &[u8]) -> Result<Read, String> {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let mut lines = bytes[..end].split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let line = text(lines.next().unwrap_or_default())?;
    let words: Vec<&str> = line.split(' ').collect();
    let [_, target, "HTTP/1.1" | "HTTP/1.0"] = words[..] else { return Err(format!("request line `{line}`")) };
    if target.is_empty() || bytes[..end].windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r') {
        return Err("an empty target or a bare LF".to_owned());
    }
    let headers = lines.map(field).collect::<Result<Vec<_>, _>>()?;
    let all = |wanted: &str| {
        let named = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
        named.map(|(_, value)| value.as_str()).collect::<Vec<_>>()
    };
    if all("host").len() > 1 {
        return Err("several Hosts".to_owned());
    }
    let rest = &bytes[end + 4..];
    let content = match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => Some((Vec::new(), Vec::new(), 0)),
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => chunks(rest)?,
        ([length], []) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length = length.parse().map_err(|_| format!("Content-Length {length}"))?;
            rest.get(..length).map(|body| (body.to_vec(), Vec::new(), length))
        }
        (lengths, codings) => return Err(format!("Content-Length {lengths:?}, Transfer-Encoding {codings:?}")),
    };
    let Some((body, trailers, length)) = content else { return Ok(None) };
    Ok(Some((Request { line, headers, body, trailers }, end + 4 + length)))
}

type Chunks = Option<(Vec<u8>, Vec<(String, String)>, usize)>;

fn chunks(bytes: &[u8]) -> Result<Chunks, String> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let Some(length) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let digits = text(&bytes[at..at + length])?;
        let size = usize::from_str_radix(&digits, 16).ok().filter(|_| digits.bytes().all(|b| b.is_ascii_hexdigit()));
        let size = size.ok_or_else(|| format!("chunk size `{digits}`"))?;
        at += length + 2;
        if size == 0 {
            return trailers(body, bytes, at);
        }
        let Some(chunk) = bytes.get(at..at + size + 2) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err("a chunk without its end".to_owned());
        }
        body.extend(&chunk[..size]);
        at += size + 2;
    }
}

fn trailers(body: Vec<u8>, bytes: &[u8], mut at: usize) -> Result<Chunks, String> {
    let mut trailers = Vec::new();
    loop {
        let Some(length) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let line = &bytes[at..at + length];
        at += length + 2;
        if line.is_empty() {
            return Ok(Some((body, trailers, at)));
        }
        let (name, value) = field(line)?;
        if ["content-length", "transfer-encoding", "host", "connection"].contains(&&*name.to_ascii_lowercase()) {
            return Err(format!("a trailer {name}"));
        }
        trailers.push((name, value));
    }
}

fn field(line: &[u8]) -> Result<(String, String), String> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a header without a colon")?;
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let (name, value) = line.split_at(colon);
    if name.is_empty() || !name.iter().all(token) {
        return Err(format!("a header named `{}`", name.escape_ascii()));
    }
    Ok((text(name)?, text(&value[1..])?.trim_matches([' ', '\t']).to_owned()))
}

/// As text, byte by byte; control characters are an error.
fn text(bytes: &[u8]) -> Result<String, String> {
    if bytes.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(format!("control characters in `{}`", bytes.escape_ascii()));
    }
    Ok(bytes.iter().map(|byte| char::from(*byte)).collect())
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
