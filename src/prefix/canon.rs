//! Canonical.
use super::fingerprint::Writer;
use crate::api::Anatomy;
pub(super) fn write(_anatomy: &Anatomy<'_>, _writer: &mut Writer) {}
