//! Room `proxy`.
pub mod settings;
