//! What hyper is told of our connections: limits, and to change nothing that an application could tell.
//!
//! No timer runs on an application's silence, and no `Date` or `Server` is added.

use hyper::{client, server};

use super::LocalExec;

/// A head of 60 KiB passes, as without the mesh through common servers; what is larger gets 431.
const HEAD: usize = 96 << 10;
/// The same for HTTP/2, where each field counts 32 bytes more (RFC 9113 §6.5.2).
const HEAD_LIST: u32 = 128 << 10;
/// More fields than any proxy on the way lets through.
const FIELDS: usize = 512;
/// What a connection may buffer of one message before it waits: a head and a piece of body.
const BUFFER: usize = HEAD + (64 << 10);
/// Requests at once on one HTTP/2 connection of an application.
const STREAMS: u32 = 1_000;
/// Per stream and connection: 1 Gb/s over 8 ms, and a slow stream holds no more than this.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What a stream may hold unsent.
const SEND_BUFFER: usize = 256 << 10;

/// Towards a client that speaks HTTP/1.
pub(super) fn server_http1() -> server::conn::http1::Builder {
    let mut builder = server::conn::http1::Builder::new();
    builder
        .half_close(true)
        .preserve_header_case(true)
        .auto_date_header(false)
        .max_headers(FIELDS)
        .max_header_size(HEAD)
        .max_buf_size(BUFFER);
    builder
}

/// Towards a client that speaks HTTP/2.
pub(super) fn server_http2() -> server::conn::http2::Builder<LocalExec> {
    let mut builder = server::conn::http2::Builder::new(LocalExec);
    builder
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEAD_LIST);
    builder
}

/// Towards an application that speaks HTTP/1.
pub(super) fn client_http1() -> client::conn::http1::Builder {
    let mut builder = client::conn::http1::Builder::new();
    builder.preserve_header_case(true).max_headers(FIELDS).max_header_size(HEAD).max_buf_size(BUFFER);
    builder
}

/// Towards an application that speaks HTTP/2.
pub(super) fn client_http2() -> client::conn::http2::Builder<LocalExec> {
    let mut builder = client::conn::http2::Builder::new(LocalExec);
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEAD_LIST);
    builder
}
