//! The data path: accept, identify, authorize, connect, copy.

pub mod pod_net;
