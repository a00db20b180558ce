//! Endpoint choice: the only room that remembers how endpoints fared.
