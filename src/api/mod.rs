//! The wire APIs a vLLM pod serves: which paths exist, what a request body says, how it is edited, what an answer says.
//!
//! Facts only: nothing here decides where a request goes. Bodies are read by one pass of an own scanner ([`Anatomy`]) and
//! changed by splicing byte ranges ([`splice()`]), so that everything the gate does not understand reaches the pod as it
//! came. Answers are scanned, never parsed whole ([`SseScan`], [`usage_of_body`]). Shapes are those of vLLM 0.32.
pub mod anatomy;
pub mod answer;
mod blocks;
pub mod bounds;
pub mod decode;
pub mod error;
pub mod form;
pub mod json;
pub mod kind;
pub mod lax;
pub mod opening;
pub mod route;
mod scan;
pub mod splice;
pub mod sse;
pub mod usage;

#[cfg(test)]
mod tests;

pub use anatomy::{Anatomy, BadBody, GRAMMARS, Member};
pub use answer::{AnswerScan, Delta, Then};
pub use bounds::{Exceeded, FieldBounds};
pub use error::{ErrorText, error_body, error_event};
pub use form::{BadForm, Form};
pub use kind::{Api, DoneMark, Shape};
pub use opening::{Alternative, Opening, alternatives, opening_of_body, opening_of_event};
pub use route::{BadPattern, PathRules, Route, route};
pub use splice::{Edit, dangers, splice, strip_dangerous};
pub use sse::{EventView, First, Marks, SseScan};
pub use usage::{Usage, response_id_of_body, usage_of_body};
