//! Counts HTTP/2 frames that cost the server work and carry no request: PING and SETTINGS floods end the connection.
//!
//! Pingora bounds resets, CONTINUATION and empty DATA itself; PING and SETTINGS are answered for ever. Frame layout: RFC
//! 9113 section 4.1. Pure: `now` is an argument.
use std::time::Duration;

use crate::base::Mono;

/// PING or SETTINGS frames allowed per [`WINDOW`].
const CONTROL_FRAMES_MAX: u32 = 1_000;
const WINDOW: Duration = Duration::from_secs(10);
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

/// Follows the frame boundaries of one connection.
#[derive(Debug)]
pub struct FrameMeter {
    /// Bytes still to pass over: the preface, then each payload.
    skip: usize,
    head: [u8; FRAME_HEAD_BYTES],
    head_len: usize,
    window_start: Mono,
    seen: u32,
}

impl Default for FrameMeter {
    fn default() -> Self {
        Self { skip: PREFACE_BYTES, head: [0; FRAME_HEAD_BYTES], head_len: 0, window_start: Mono::ZERO, seen: 0 }
    }
}

impl FrameMeter {
    /// Looks at the next bytes from the client; an error says which flood it was.
    pub fn feed(&mut self, now: Mono, mut chunk: &[u8]) -> Result<(), &'static str> {
        while !chunk.is_empty() {
            if self.skip > 0 {
                let passed = self.skip.min(chunk.len());
                self.skip -= passed;
                chunk = chunk.get(passed..).unwrap_or_default();
                continue;
            }
            let taken = (FRAME_HEAD_BYTES - self.head_len).min(chunk.len());
            let (ahead, rest) = chunk.split_at(taken);
            for (slot, byte) in self.head.iter_mut().skip(self.head_len).zip(ahead) {
                *slot = *byte;
            }
            self.head_len += taken;
            chunk = rest;
            if self.head_len == FRAME_HEAD_BYTES {
                self.frame(now)?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, now: Mono) -> Result<(), &'static str> {
        let [a, b, c, kind, ..] = self.head;
        self.head_len = 0;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if !matches!(kind, SETTINGS | PING) {
            return Ok(());
        }
        if now.since(self.window_start) >= WINDOW {
            self.window_start = now;
            self.seen = 0;
        }
        self.seen += 1;
        if self.seen > CONTROL_FRAMES_MAX { Err("too many PING or SETTINGS frames") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, (payload >> 8) as u8, payload as u8, kind, 0, 0, 0, 0, 0];
        bytes.extend(std::iter::repeat_n(9, payload));
        bytes
    }

    fn check(frames: &[u8], step: usize, expected: bool) {
        let mut meter = FrameMeter::default();
        meter.feed(Mono(1), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let passed = frames.chunks(step).all(|chunk| meter.feed(Mono(1), chunk).is_ok());
        assert_eq!(passed, expected, "step {step}");
    }

    #[test]
    fn floods_end_and_data_does_not() {
        for step in [1, 7, 4096] {
            check(&frame(PING, 8).repeat(1_000), step, true);
            check(&frame(PING, 8).repeat(1_001), step, false);
            check(&frame(SETTINGS, 0).repeat(1_001), step, false);
            check(&frame(0, 300).repeat(3_000), step, true);
        }
    }

    #[test]
    fn a_new_window_starts_afresh() {
        let mut meter = FrameMeter { skip: 0, ..FrameMeter::default() };
        for second in 0..30 {
            meter.feed(Mono(second * 11_000_000), &frame(PING, 8).repeat(900)).unwrap();
        }
    }
}
