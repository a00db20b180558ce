//! What a transparent proxy must never break: each scenario runs without the mesh and on every lane that could carry
//! it, and what an application sees must be the same.
//!
//! Lanes (`world`): tunnel, native, http (a Service with a route, rules about requests at the server: both nodes read
//! requests; once with a server of another node and once of the same), detected (a Service with a route and whatever
//! is spoken). `tcp`, `http1` and `http2` drive both ends themselves; `apps` runs real clients and servers.
//!
//! | what | held by | on |
//! |---|---|---|
//! | server speaks first, no added wait | `tcp`; redis: `apps`, `mesh_streams` | streams |
//! | half-close either way, long answers; RST either way | `tcp` | streams |
//! | closed port, refused or reset | `mesh_streams: a_dead_port…` | tunnel |
//! | byte at a time, 0 bytes, 1 GiB each way at once | `tcp` | streams |
//! | idle for longer than any timer | `tcp`: opened first, used last | streams |
//! | out-of-band data, keepalive | `tcp` | streams |
//! | `getpeername`, `getsockname`; IPv4, IPv6 | `tcp`, "addresses"; all of it by both families | streams |
//! | source port reuse | `kernel_capture: two_connections_from_one_port…` | capture |
//! | non-blocking, io_uring, Fast Open, MPTCP, v4-mapped | `tcp: every_way_to_connect` | streams |
//! | a pod calling itself, by IP and Service | `mesh_streams: a_pod_reaches_itself…` | tunnel |
//! | UDP and ICMP untouched | `kernel_guard: legitimate` | – |
//! | the application's own TLS | `tls` | streams |
//! | open connections over changes of rules and endpoints | `life` | all |
//! | the same over restarts and upgrades of the agent | `mesh_upgrade`, `mesh_native` | tunnel, native |
//! | HTTP/1.0, absolute-form, CONNECT, `OPTIONS *`, HEAD, 204, 304 | `http1` | requests |
//! | 100-continue granted and refused, 101 | `http1` | requests |
//! | chunks, trailers, extensions, answers to their end, pipelining | `http1` | requests |
//! | headers in order and case, nothing added | `http1` | requests |
//! | hop-by-hop headers | `proxy::http`: `hop`, `properties` | http |
//! | bodies on GET and DELETE, early answers, events at once | `http1` | requests |
//! | head of 60 KiB, target of 8 KiB byte for byte | `http1` | requests |
//! | a body that is cut short is no success | `http1` | requests |
//! | smuggling refused | `proxy::tests`: `smuggling`, `smuggling_h2` | http |
//! | h2c: streams both ways, trailers only, metadata, resets, PING, 1,000 streams | `http2` | requests |
//! | a slow stream does not stall its neighbours | `http2` | requests |
//! | 10 GiB of body, 10,000 idle connections, a client that does not read: memory | `memory` (long) | http |
//! | GOAWAY drains | `http2: goaway_drains` | http |
//! | gRPC in another language | `apps` | requests |
//! | curl, h2load, nginx, redis | `apps` | requests, streams |
//!
//! Not the same, and written down in decision 0007: interim answers other than 100 and 101 do not pass the http lane,
//! trailers of HTTP/1 pass it where `Trailer` announces them, extended CONNECT is not offered there. A client whose
//! first bytes can still become a request line, and which waits for an answer to them, waits for ever where nothing is
//! declared.

// Tests may panic: that is how they fail.
#![allow(clippy::panic, clippy::indexing_slicing, missing_docs)]

mod apps;
mod http1;
mod http2;
mod life;
mod memory;
mod message;
mod tcp;
mod tls;
mod world;
