//! Room `prefix`.
