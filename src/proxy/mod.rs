//! The data path: accepts, checks, plans, forwards, streams back.
pub mod floods;
pub mod guard;
pub mod lint;
pub mod upstream;
