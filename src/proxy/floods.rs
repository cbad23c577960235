//! Watches HTTP/2 frames for what costs the server and carries no request: floods of PING and SETTINGS, and heads that
//! never end. Both end the connection.
//!
//! Pingora bounds resets, CONTINUATION and empty DATA itself; PING and SETTINGS are answered for ever, and a head that
//! dribbles in HEADERS and CONTINUATION frames has no deadline. Frame layout: RFC 9113 sections 4.1, 6.2 and 6.10. Pure:
//! `now` is an argument.
use std::time::Duration;

use crate::base::Mono;

/// PING or SETTINGS frames allowed per [`WINDOW`].
const CONTROL_FRAMES_MAX: u32 = 1_000;
/// Frames without effect (PRIORITY, kinds nobody knows) allowed per [`WINDOW`]: browsers send one or two per request.
const IDLE_FRAMES_MAX: u32 = 10_000;
/// WINDOW_UPDATE frames allowed per [`WINDOW`]: careful clients send two for each event of each stream.
const CREDIT_FRAMES_MAX: u32 = 200_000;
const WINDOW: Duration = Duration::from_secs(10);
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// Flag of the frame that ends a head.
const END_HEADERS: u8 = 4;
const SETTINGS: u8 = 4;
const PRIORITY: u8 = 2;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;

/// Follows the frame boundaries of one connection.
#[derive(Debug)]
pub struct FrameMeter {
    /// Bytes still to pass over: the preface, then each payload.
    skip: usize,
    head: [u8; FRAME_HEAD_BYTES],
    head_len: usize,
    window_start: Mono,
    /// Frames of the window: PING and SETTINGS, without effect, WINDOW_UPDATE.
    seen: [u32; 3],
    /// Longest time for the head of a request, from the first byte of its first frame.
    head_max: Duration,
    /// When the head that is coming began; `None` between heads.
    head_since: Option<Mono>,
    /// The frame that is coming ends its head.
    ends_head: bool,
}

impl FrameMeter {
    /// Watches a connection from its preface on, on which heads may take `head_max`.
    pub fn new(head_max: Duration) -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; FRAME_HEAD_BYTES],
            head_len: 0,
            window_start: Mono::ZERO,
            seen: [0; 3],
            head_max,
            head_since: None,
            ends_head: false,
        }
    }

    /// Until when the head that is coming must have ended; `None` between heads.
    pub fn head_until(&self) -> Option<Mono> {
        self.head_since.map(|since| since.after(self.head_max))
    }

    /// Looks at the next bytes from the client; an error says which flood it was.
    pub fn feed(&mut self, now: Mono, mut chunk: &[u8]) -> Result<(), &'static str> {
        while !chunk.is_empty() {
            if self.skip > 0 {
                let passed = self.skip.min(chunk.len());
                self.skip -= passed;
                chunk = chunk.get(passed..).unwrap_or_default();
                self.frame_may_end();
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
                self.frame_may_end();
            }
        }
        if self.head_until().is_some_and(|until| now >= until) { Err("a head that does not end") } else { Ok(()) }
    }

    /// With the last byte of a head's last frame the head is there.
    fn frame_may_end(&mut self) {
        if self.skip == 0 && self.ends_head {
            (self.ends_head, self.head_since) = (false, None);
        }
    }

    fn frame(&mut self, now: Mono) -> Result<(), &'static str> {
        let [a, b, c, kind, flags, ..] = self.head;
        self.head_len = 0;
        self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        if matches!(kind, HEADERS | CONTINUATION) {
            self.head_since.get_or_insert(now);
            self.ends_head = flags & END_HEADERS != 0;
        }
        let [control, idle, credit] = &mut self.seen;
        let (seen, most, flood) = match kind {
            SETTINGS | PING => (control, CONTROL_FRAMES_MAX, "too many PING or SETTINGS frames"),
            WINDOW_UPDATE => (credit, CREDIT_FRAMES_MAX, "too many WINDOW_UPDATE frames"),
            PRIORITY | 10.. => (idle, IDLE_FRAMES_MAX, "too many frames without effect"),
            _ => return Ok(()),
        };
        *seen += 1;
        if *seen <= most {
            return Ok(());
        }
        // Only who has had its share is asked for the time.
        if now.since(self.window_start) < WINDOW {
            return Err(flood);
        }
        (self.window_start, self.seen) = (now, [1; 3]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAD_MAX: Duration = Duration::from_secs(10);

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        flagged(kind, 0, payload)
    }

    fn flagged(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, (payload >> 8) as u8, payload as u8, kind, flags, 0, 0, 0, 0];
        bytes.extend(std::iter::repeat_n(9, payload));
        bytes
    }

    fn check(frames: &[u8], step: usize, expected: bool) {
        let mut meter = FrameMeter::new(HEAD_MAX);
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
        let mut meter = FrameMeter { skip: 0, ..FrameMeter::new(HEAD_MAX) };
        for second in 0..30 {
            meter.feed(Mono(second * 11_000_000), &frame(PING, 8).repeat(900)).unwrap();
        }
    }

    /// Feeds one byte every 100 ms. Gives when the meter had enough \[bytes\], and when the head must have ended then.
    fn dribble(bytes: &[u8]) -> (Option<usize>, Option<Mono>) {
        let mut meter = FrameMeter { skip: 0, ..FrameMeter::new(HEAD_MAX) };
        let fed = |(number, byte): (usize, &u8)| meter.feed(Mono(number as u64 * 100_000), &[*byte]).is_err();
        (bytes.iter().enumerate().position(fed), meter.head_until())
    }

    #[test]
    fn a_head_must_end_in_time_and_a_body_need_not() {
        let (whole, part, more, last) =
            (flagged(HEADERS, END_HEADERS, 5), frame(HEADERS, 5), frame(CONTINUATION, 20), flagged(CONTINUATION, 4, 5));
        // The clock starts with the ninth byte of the first frame's head and rings 100 bytes later.
        assert_eq!(dribble(&flagged(HEADERS, END_HEADERS, 300)).0, Some(108));
        assert_eq!(dribble(&[part.clone(), more.repeat(10)].concat()).0, Some(108));
        assert_eq!(dribble(&[part.clone(), more.clone(), last].concat()), (None, None));
        assert_eq!(dribble(&[whole.clone(), frame(0, 1_000), whole].concat()), (None, None));
        // Nothing more comes: the deadline is known all the same.
        assert_eq!(dribble(&part), (None, Some(Mono(800_000 + 10_000_000))));
    }
}
