//! Bytes per token.
