//! Two agents on loopback: what applications see, what records say, and that nothing is left behind.

mod failures;
mod http;
mod load;
mod policy;
mod raw;
mod rig;
mod transparency;
mod wire;
