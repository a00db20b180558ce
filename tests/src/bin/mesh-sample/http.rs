//! A web service that tells who it is and whom it sees, and asks other services while it answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::options::Options;
use crate::servers::{self, canonical, print_line};

const WITHIN: Duration = Duration::from_secs(10);

/// One request's first line and whether the connection goes on after it.
struct Request {
    method: String,
    path: String,
    keep_alive: bool,
}

/// Serves for ever.
pub fn serve(options: &Options) -> Result<()> {
    servers::serve(options, connection)
}

fn connection(stream: TcpStream, peer: SocketAddr, options: &Options) -> Result<Value> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut requests = 0;
    while let Some(request) = read_request(&mut reader)? {
        requests += 1;
        answer(&mut writer, peer, options, &request)?;
        if !request.keep_alive {
            break;
        }
    }
    Ok(json!({ "requests": requests }))
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Result<Option<Request>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let mut words = first.split_ascii_whitespace();
    let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next()) else {
        bail!("`{}` is no request line", first.trim_end());
    };
    let mut request = Request { method: method.into(), path: path.into(), keep_alive: version == "HTTP/1.1" };
    let mut body_bytes = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(length) = line.strip_prefix("content-length:") {
            body_bytes = length.trim().parse().context("content-length is no number")?;
        }
        if line == "connection: close" {
            request.keep_alive = false;
        }
    }
    std::io::copy(&mut reader.take(body_bytes), &mut std::io::sink())?;
    Ok(Some(request))
}

fn answer(writer: &mut TcpStream, peer: SocketAddr, options: &Options, request: &Request) -> Result<()> {
    let name: String = options.or("name", "http".to_owned())?;
    let client = canonical(peer);
    let calls: Vec<Value> = options.all("calls").map(|target| call(target, &request.path)).collect();
    let failed = calls.iter().any(|call| call.get("error").is_some());
    let status = if failed { "502 Bad Gateway" } else { "200 OK" };
    let mut body = json!({ "app": name, "client": client.ip().to_string(), "path": request.path, "calls": calls });
    if calls.is_empty()
        && let Some(object) = body.as_object_mut()
    {
        object.remove("calls");
    }
    let body = format!("{body}\n");
    print_line(&json!({ "request": request.path, "method": request.method, "client": client.ip().to_string() }));
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    let end = if request.keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" };
    writer.write_all(format!("{head}{end}{body}").as_bytes())?;
    Ok(())
}

fn call(target: &str, path: &str) -> Value {
    match request(target, path) {
        Ok((status, body)) => {
            let answer = serde_json::from_str(&body).unwrap_or(Value::String(body));
            json!({ "to": target, "status": status, "answer": answer })
        }
        Err(error) => json!({ "to": target, "error": format!("{error:#}") }),
    }
}

/// One request on a connection of its own; gives status and body.
fn request(target: &str, path: &str) -> Result<(u16, String)> {
    let address: SocketAddr = target.parse().with_context(|| format!("`{target}` is not IP:PORT"))?;
    let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
    stream.set_read_timeout(Some(WITHIN))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no whole answer")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}

/// One request; prints status and body.
pub fn get(options: &Options) -> Result<()> {
    let to: String = options.required("to")?;
    let path: String = options.or("path", "/".to_owned())?;
    let (status, body) = request(&to, &path)?;
    let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
    print_line(&json!({ "status": status, "body": body }));
    Ok(())
}
