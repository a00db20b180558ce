//! The trace that a request is part of.

pub mod context;
