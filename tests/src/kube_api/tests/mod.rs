//! The API server over real HTTP on loopback, by a client that knows nothing of it.

mod faults;
mod rest;
mod watch;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use super::{ADMIN_TOKEN, ApiServer};

/// Nothing takes longer than this here.
const WITHIN: Duration = Duration::from_secs(10);

const APPLY: &str = "application/apply-patch+yaml";
const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";

fn server() -> ApiServer {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    ApiServer::start(vec![listener]).expect("a server")
}

/// A server with namespace `shop` and the mesh's kinds.
fn shop() -> ApiServer {
    let server = server();
    server.install_crds().expect("CRDs");
    server.put("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}").expect("a namespace");
    server
}

fn pod(name: &str, app: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}, \
         spec: {{nodeName: node-a}}, status: {{phase: Running}}}}"
    )
}

fn open(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&address, WITHIN).expect("a connection");
    stream.set_read_timeout(Some(WITHIN)).expect("a timeout");
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "Authorization") {
        head.push_str(&format!("Authorization: Bearer {ADMIN_TOKEN}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    write!(stream, "{head}\r\n{body}").expect("sent");
    stream
}

/// The code and the head's end: what follows is the body.
fn head(reader: &mut impl BufRead) -> u16 {
    let mut status = String::new();
    reader.read_line(&mut status).expect("a status line");
    let code = status.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
    let mut line = String::new();
    while reader.read_line(&mut line).expect("a header") > 2 {
        line.clear();
    }
    code
}

fn ask_with(server: &ApiServer, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
    let headers = [headers, &[("Connection", "close")]].concat();
    let mut reader = BufReader::new(open(server.address(0).expect("an address"), method, path, &headers, body));
    let code = head(&mut reader);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("a body");
    (code, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn ask(server: &ApiServer, method: &str, path: &str, body: &Value) -> (u16, Value) {
    ask_with(server, method, path, &[("Content-Type", JSON)], &body.to_string())
}

fn get(server: &ApiServer, path: &str) -> (u16, Value) {
    ask_with(server, "GET", path, &[], "")
}

fn patch(server: &ApiServer, media: &str, path: &str, body: &Value) -> (u16, Value) {
    ask_with(server, "PATCH", path, &[("Content-Type", media)], &body.to_string())
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().into_iter().flatten();
    items.filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

/// An open watch: the chunks of its body, line by line.
struct Watching {
    reader: BufReader<TcpStream>,
    rest: String,
}

impl Watching {
    fn new(server: &ApiServer, path: &str) -> Self {
        Self::of(server, path, &[])
    }

    fn of(server: &ApiServer, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut reader = BufReader::new(open(server.address(0).expect("an address"), "GET", path, headers, ""));
        assert_eq!(head(&mut reader), 200, "{path}");
        Self { reader, rest: String::new() }
    }

    /// The next event as (type, object); none at the end of the body, an error when it is cut.
    fn next(&mut self) -> std::io::Result<Option<(String, Value)>> {
        while !self.rest.contains('\n') {
            let mut size = String::new();
            self.reader.read_line(&mut size)?;
            let size = usize::from_str_radix(size.trim(), 16)
                .map_err(|_| std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "cut"))?;
            if size == 0 {
                return Ok(None);
            }
            let mut chunk = vec![0; size + 2];
            self.reader.read_exact(&mut chunk)?;
            self.rest.push_str(std::str::from_utf8(&chunk).expect("text").trim_end_matches("\r\n"));
            if !self.rest.ends_with('\n') {
                self.rest.push('\n');
            }
        }
        let (line, rest) = self.rest.split_once('\n').expect("a line");
        let event: Value = serde_json::from_str(line).expect("JSON");
        self.rest = rest.to_owned();
        let kind = event["type"].as_str().expect("a type").to_owned();
        Ok(Some((kind, event["object"].clone())))
    }

    /// The next event, which must come, as `TYPE name`.
    fn event(&mut self) -> String {
        let (kind, object) = self.next().expect("not cut").expect("not ended");
        format!("{kind} {}", object["metadata"]["name"].as_str().unwrap_or_default())
    }
}

#[test]
fn a_server_leaves_nothing_when_it_is_dropped() {
    let server = server();
    let address = server.address(0).expect("an address");
    assert_eq!(get(&server, "/version").0, 200);
    let mut watching = Watching::new(&server, "/api/v1/pods?watch=1");
    drop(server);
    assert!(watching.next().is_err());
    TcpListener::bind(address).expect("the port is free again");
}

#[test]
fn a_kubeconfig_names_server_and_token() {
    let server = server();
    let path = std::env::temp_dir().join(format!("mesh-kubeconfig-{}", std::process::id()));
    let url = server.url(0).expect("a URL");
    server.write_kubeconfig(&path, &url).expect("written");
    let text = std::fs::read_to_string(&path).expect("readable");
    std::fs::remove_file(&path).expect("removed");
    let config: Value = serde_norway::from_str(&text).expect("YAML");
    assert_eq!(config["clusters"][0]["cluster"]["server"], url);
    assert_eq!(config["users"][0]["user"], json!({"token": ADMIN_TOKEN}));
}
