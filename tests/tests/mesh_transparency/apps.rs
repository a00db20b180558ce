//! Real clients and servers: what each prints is what it prints without the mesh.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use mesh_tests::apps;
use mesh_tests::mesh::scenario;
use mesh_tests::process::Process;
use mesh_tests::scale;

use crate::world::{APP_PORT, REQUESTS, STREAMS, WITHIN, Way, World};

/// The distribution's own: it has the packages that `cargo xtask setup` installs.
const PYTHON: &str = "/usr/bin/python3";

/// What a client of the pod prints.
fn printed(way: &Way, mut command: Command) -> Result<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("client-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    command.env("no_proxy", "*").env_remove("http_proxy");
    way.client.spawn(&name, command)?.finish(WITHIN * 3)
}

/// One server for each way.
fn servers(world: &World, start: impl Fn(&Way) -> Result<Process>) -> Result<Vec<Process>> {
    world.ways.iter().map(start).collect()
}

fn script(way: &Way, name: &str, text: &str) -> Result<std::path::PathBuf> {
    let path = way.server.folder().join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[test]
fn a_client_and_a_server_of_grpc_in_another_language_notice_nothing() -> Result<()> {
    scenario(|mesh| {
        let world = World::new(mesh)?;
        let _servers = servers(&world, |way| {
            let mut command = Command::new(PYTHON);
            command.arg(script(way, "grpc_server.py", include_str!("grpc_server.py"))?).arg(APP_PORT.to_string());
            way.server.serve("grpc", command, APP_PORT)
        })?;
        world.same_output(REQUESTS, "gRPC", |way, to| {
            let mut command = Command::new(PYTHON);
            command.arg(script(way, "grpc_client.py", include_str!("grpc_client.py"))?).arg(to.to_string());
            printed(way, command)
        })
    })
}

#[test]
fn curl_and_nginx_notice_nothing() -> Result<()> {
    scenario(|mesh| {
        let world = World::new(mesh)?;
        let _servers = servers(&world, |way| apps::nginx(&way.server, APP_PORT, "hello"))?;
        for arguments in CURL {
            world.same_output(REQUESTS, &arguments.join(" "), |way, to| curl(way, to, arguments))?;
        }
        Ok(())
    })
}

#[test]
fn curl_h2load_and_nginx_notice_nothing_in_http2() -> Result<()> {
    scenario(|mesh| {
        let world = World::new(mesh)?;
        let _servers = servers(&world, |way| apps::nginx_http2(&way.server, APP_PORT, "hello"))?;
        for arguments in [&["/"][..], &["/large"], &["--head", "/"]] {
            let arguments = [&["--http2-prior-knowledge"], arguments].concat();
            world.same_output(REQUESTS, &arguments.join(" "), |way, to| curl(way, to, &arguments))?;
        }
        world.same_output(REQUESTS, "h2load", h2load)
    })
}

/// Two requests each, so that a connection is used again.
const CURL: &[&[&str]] = &[
    &["/", "/large"],
    &["--http2", "/", "/"],
    &["--http1.0", "/", "/"],
    &["--head", "/", "/large"],
    &["--request", "DELETE", "--data", "abc", "/", "/"],
    &["--header", "Range: bytes=1-3", "/", "/large"],
    &["--header", "Host:", "/", "/"],
    &["--path-as-is", "/..;/%2e%2e//?", "/a/../b"],
];

/// Statuses, sizes and headers that do not say when or how the answer came.
fn curl(way: &Way, to: SocketAddr, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--max-time",
        "20",
        "--dump-header",
        "-",
        "--output",
        "/dev/null",
        "--output",
        "/dev/null",
    ]);
    command.args(["--write-out", "%{http_code} %{size_download} %{exitcode}\n"]);
    let (paths, options): (Vec<&str>, Vec<&str>) = arguments.iter().partition(|argument| argument.starts_with('/'));
    command.args(options).args(paths.iter().map(|path| format!("http://{to}{path}")));
    let said = printed(way, command)?;
    let hop = ["date:", "last-modified:", "etag:", "connection:", "keep-alive:"];
    // Which of the two versions an answer to HTTP/1.0 says is each server's own choice (RFC 9112 §2.3).
    let lines = said.lines().filter(|line| !hop.iter().any(|name| line.to_ascii_lowercase().starts_with(name)));
    Ok(lines.map(|line| format!("{}\n", line.replace("HTTP/1.0 ", "HTTP/1.1 "))).collect())
}

/// As many streams as nginx takes on each of several connections.
fn h2load(way: &Way, to: SocketAddr) -> Result<String> {
    let requests = scale::pick(2_000, 100_000).to_string();
    let mut command = Command::new("h2load");
    command.args(["--requests", &requests, "--clients", "4", "--max-concurrent-streams", "100"]);
    command.arg(format!("http://{to}/"));
    let said = printed(way, command)?;
    let told = ["requests:", "status codes:"];
    let lines: Vec<&str> = said.lines().filter(|line| told.iter().any(|name| line.starts_with(name))).collect();
    ensure!(lines.len() == 2, "{said}");
    Ok(lines.join("\n"))
}

#[test]
fn servers_that_speak_first_or_other_protocols_notice_nothing() -> Result<()> {
    scenario(|mesh| {
        let world = World::new(mesh)?;
        let _servers = servers(&world, |way| {
            let mut command = Command::new("redis-server");
            command.args(["--port", &APP_PORT.to_string(), "--save", "", "--protected-mode", "no", "--dir"]);
            command.arg(way.server.folder());
            way.server.serve("redis", command, APP_PORT)
        })?;
        world.same_output(STREAMS, "redis-cli", |way, to| {
            let mut command = Command::new("redis-cli");
            command.args(["-h", &to.ip().to_string(), "-p", &to.port().to_string(), "--raw", "EVAL"]);
            command.args([
                "redis.call('SET', KEYS[1], string.rep('x', 1e6)); return {1, redis.call('STRLEN', KEYS[1])}",
                "1",
                "k",
            ]);
            printed(way, command)
        })
    })
}
