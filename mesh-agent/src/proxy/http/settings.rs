//! What hyper is told of our connections: limits, and to change nothing that an application could tell.
//!
//! No timer runs on an application's silence, and no `Date` or `Server` is added. What reaches a limit is counted
//! (`mesh_limit_reached_total`) and answered or ended with the limit's name.

use http::request::Parts;
use hyper::{client, server};

use super::LocalExec;
use super::resets::Resets;

/// What an operator may want otherwise of the http lane; `docs/configuration.md` has the bounds as a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// The head of a request: names, values and 32 bytes for each field (RFC 9113 §6.5.2), target included. A head of
    /// 60 KiB passes, as without the mesh through common servers; what is larger is answered 431.
    pub head_bytes: usize,
    /// Requests at once on one HTTP/2 connection of an application: as many as a busy gRPC client has, ten times what
    /// RFC 9113 asks for at least. Further ones wait at the client.
    pub streams: u32,
    /// Requests at once of one pod, in both directions together: more than it may have connections, so that whoever has
    /// one request on each meets that limit first; HTTP/2 alone could have a thousand times as many. At some 20 KiB
    /// each, 600 MiB. Beyond it a request is answered 503, and other pods notice nothing.
    pub requests_per_pod: usize,
    /// What may be kept of a request's body to send it again. Enough for most calls; a longer one passes and is sent
    /// once.
    pub replay_bytes: usize,
    /// The same for all requests of a pod: 512 bodies of the length above. Beyond it bodies pass and are sent once.
    pub replay_bytes_per_pod: usize,
    /// The answer to a denied request names the policy.
    pub tell_policy: bool,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            head_bytes: 96 << 10,
            streams: 1_000,
            requests_per_pod: 30_000,
            replay_bytes: 64 << 10,
            replay_bytes_per_pod: 32 << 20,
            tell_policy: false,
        }
    }
}

impl HttpLimits {
    /// Where hyper gives up on a head by itself: above our own limit, whose answer says why. It also bounds how many
    /// CONTINUATION frames are read of one head (h2 derives that from it).
    fn hard_head_bytes(&self) -> usize {
        self.head_bytes.saturating_add(self.head_bytes / 2)
    }

    /// Whether `head` is larger than is let through.
    pub(super) fn is_too_large(&self, head: &Parts) -> bool {
        let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
        let fields = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32);
        target + fields.sum::<usize>() > self.head_bytes
    }
}

/// More fields than any proxy on the way lets through.
const FIELDS: usize = 512;
/// What a connection may buffer of one message beyond its head before it waits: a piece of body.
const PIECE: usize = 64 << 10;
/// Per stream and connection: 1 Gb/s over 8 ms, and a slow stream holds no more than this.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// What a stream may hold unsent.
const SEND_BUFFER: usize = 256 << 10;
/// Requests that a client has reset before we have looked at them (CVE-2023-44487): five times h2's own value, which
/// clients that give up a burst of calls have met.
const PENDING_RESETS: usize = 100;
/// Requests that we reset for a client's mistakes in the protocol, over the connection's life: h2's own value.
const ERROR_RESETS: usize = 1_024;
/// Requests that a client gives up early, before it is cut off if they are most of what it asks for: as Envoy has it.
/// A client that keeps no more than this for itself costs what any other does.
const EARLY_RESETS: u64 = 500;

/// Counts the requests that a client resets before their answer.
pub(super) fn resets() -> Resets {
    Resets::new(EARLY_RESETS)
}

/// Towards a client that speaks HTTP/1.
pub(super) fn server_http1(limits: &HttpLimits) -> server::conn::http1::Builder {
    let mut builder = server::conn::http1::Builder::new();
    builder
        .half_close(true)
        .preserve_header_case(true)
        .auto_date_header(false)
        .max_headers(FIELDS)
        .max_header_size(limits.hard_head_bytes())
        .max_buf_size(limits.hard_head_bytes() + PIECE);
    builder
}

/// Towards a client that speaks HTTP/2.
pub(super) fn server_http2(limits: &HttpLimits) -> server::conn::http2::Builder<LocalExec> {
    let mut builder = server::conn::http2::Builder::new(LocalExec);
    builder
        .auto_date_header(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(ERROR_RESETS)
        .max_header_list_size(u32::try_from(limits.hard_head_bytes()).unwrap_or(u32::MAX));
    builder
}

/// Towards an application that speaks HTTP/1.
pub(super) fn client_http1(limits: &HttpLimits) -> client::conn::http1::Builder {
    let mut builder = client::conn::http1::Builder::new();
    builder
        .preserve_header_case(true)
        .max_headers(FIELDS)
        .max_header_size(limits.hard_head_bytes())
        .max_buf_size(limits.hard_head_bytes() + PIECE);
    builder
}

/// Towards an application that speaks HTTP/2.
pub(super) fn client_http2(limits: &HttpLimits) -> client::conn::http2::Builder<LocalExec> {
    let mut builder = client::conn::http2::Builder::new(LocalExec);
    builder
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(u32::try_from(limits.hard_head_bytes()).unwrap_or(u32::MAX));
    builder
}
