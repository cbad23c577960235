//! Tests of the room: bodies read and spliced, streams scanned, against captures of a real server and random input.
mod body;
mod edit;
mod stream;
