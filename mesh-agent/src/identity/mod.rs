//! Certificates: CA clients, store, rotation. Keys never leave this room and tls.
