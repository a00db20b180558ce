//! Two agents on loopback: what applications see, what records say, and that nothing is left behind.

mod balance;
mod detect;
mod failures;
mod http;
mod http2;
mod limits;
mod load;
mod policy;
mod raw;
mod raw_client;
pub(super) mod recorder;
mod requests;
mod rig;
pub(super) mod smuggling;
mod smuggling_h2;
mod transparency;
mod wire;
