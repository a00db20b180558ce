//! The application of the Gateway API conformance cases: a server that tells what it was asked, and its client.
//!
//! Both speak HTTP/1.1, HTTP/2 with prior knowledge, gRPC and plain TCP, and know nothing of any mesh. What they
//! print and take is what the suite's own application prints and takes, as far as its cases need it.

mod client;
mod knobs;
mod message;
mod server;

pub use client::ask;
pub use server::serve;

use anyhow::{Context, Result};

/// The one method of the gRPC service.
const GRPC_METHOD: &str = "/proto.EchoTestService/Echo";

/// Runs `work` on this thread.
fn run(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("no runtime")?.block_on(work)
}
