//! Tests of the room: what makes two prompts alike, and the index on random histories.
mod alike;
mod anchors;
mod answers;
mod canonical;
mod history;
mod reach;
mod saved;
mod sound;
mod truths;
