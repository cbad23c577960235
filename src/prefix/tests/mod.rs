//! Tests of the room, filled in by its parts.
