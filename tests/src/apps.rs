//! Real servers in pods, with the least configuration that makes them run there.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::pod::Pod;
use crate::process::Process;

/// nginx with one worker: `/` answers `body`, `/large` answers 2 MiB.
///
/// # Errors
/// When it does not listen in time.
pub fn nginx(pod: &Pod, port: u16, body: &str) -> Result<Process> {
    nginx_pages(pod, port, "", body)
}

/// The same for clients that speak HTTP/2 from their first byte.
///
/// # Errors
/// As [`nginx`].
pub fn nginx_http2(pod: &Pod, port: u16, body: &str) -> Result<Process> {
    nginx_pages(pod, port, "http2", body)
}

fn nginx_pages(pod: &Pod, port: u16, protocol: &str, body: &str) -> Result<Process> {
    const LARGE_BYTES: usize = 2 << 20;
    let pages = pod.folder().join(format!("pages-{port}"));
    fs::create_dir_all(&pages)?;
    fs::write(pages.join("index.html"), body)?;
    fs::write(pages.join("large"), vec![b'x'; LARGE_BYTES])?;
    let pages = pages.display();
    // Files are cached so that the disk plays no part.
    let http = format!(
        "  open_file_cache max=100;\n  sendfile on;\n  tcp_nopush on;\n  server {{\n    \
         listen {port} {protocol} backlog=4096;\n    listen [::]:{port} {protocol} backlog=4096;\n    \
         root {pages};\n    try_files $uri /index.html;\n  }}\n"
    );
    nginx_with(pod, port, &http)
}

/// nginx with one worker and such an `http` block, which listens on `port`.
///
/// # Errors
/// As [`nginx`].
pub fn nginx_with(pod: &Pod, port: u16, http: &str) -> Result<Process> {
    let folder = pod.folder().join(format!("nginx-{port}"));
    fs::create_dir_all(&folder)?;
    let here = folder.display();
    // One process, so that killing it ends it.
    let configuration = format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid {here}/pid;\nerror_log {here}/error.log;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n  access_log off;\n  keepalive_requests 100000000;\n  client_body_temp_path {here}/body;\n  \
         proxy_temp_path {here}/proxy;\n  fastcgi_temp_path {here}/fastcgi;\n  uwsgi_temp_path {here}/uwsgi;\n  \
         scgi_temp_path {here}/scgi;\n{http}}}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration).with_context(|| format!("cannot write {}", file.display()))?;
    let program =
        ["/usr/sbin/nginx", "/usr/local/sbin/nginx"].into_iter().find(|path| fs::exists(path).unwrap_or(false));
    let mut command = Command::new(program.unwrap_or("nginx"));
    command.arg("-p").arg(&folder).arg("-c").arg(&file);
    pod.serve(&format!("nginx-{port}"), command, port)
}
