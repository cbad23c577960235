//! The data path: accepts, checks, plans, forwards, streams back.
pub mod floods;
pub mod frame;
pub mod guard;
pub mod headers;
pub mod lint;
pub mod reply;
pub mod upstream;
