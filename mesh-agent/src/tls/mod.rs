//! rustls configurations and peer verification: the only place a Peer is made.
