//! The only reader of arguments and environment; reports every error at once.
