//! Room `scheduling`.
