//! A request on two pods: the prefill on one, its KV over the link, the decode on the other.
//!
//! The decoder is sent its part when the prefill has answered, as the gate does it; it can begin once the KV is there. What it
//! has in its own cache is not brought. Handovers out of one pod follow each other on its link.
use tidegate::pods::Lien;

use super::{Happening, World};
use crate::lab::gate::{Choice, Told};
use crate::lab::pods::Kv;
use crate::lab::record::End;

/// How far a request on two pods is.
pub(super) enum Course {
    /// The prefill is under way; the decoder's room is kept.
    Prefill {
        /// Where the decode will go.
        decode: Choice,
        /// Its room there.
        _room: Option<Lien>,
    },
    /// The KV is on its way, or the decode.
    Decode {
        /// Who prefilled, until the KV is there.
        prefiller: usize,
    },
}

impl World<'_> {
    /// The prefill of a request has answered.
    pub(super) fn prefilled(&mut self, number: usize) {
        let now = self.now;
        let Some((flight, record)) = self.flights.get_mut(number).zip(self.log.records.get_mut(number)) else { return };
        record.prefilled = Some(now.0);
        let prefiller = flight.at as usize;
        let course = flight.course.replace(Course::Decode { prefiller });
        let (Some(Course::Prefill { decode, .. }), Some(mut trial)) = (course, flight.trial.take()) else { return };
        trial.answered(now);
        self.committed(number);
        let Some((flight, record)) = self.flights.get_mut(number).zip(self.log.records.get_mut(number)) else { return };
        let cached = self.cell.clients.cached_told.then_some(record.cached);
        let handed = trial.handed(now, Told { prompt: record.prompt_tokens, cached, completion: 1 });
        let gate = self.gates.get(flight.gate as usize);
        flight.trial =
            gate.zip(flight.asked.as_ref()).and_then(|(gate, asked)| gate.decode(now, asked, &decode, handed));
        flight.at = decode.at as u32;
        let ranks = self.cell.fleet.ranks.max(1) as usize;
        let prompt = flight.made.as_ref().map(|made| self.tokens.prompt(made));
        let missing = prompt.map_or(0, |prompt| {
            let group = self.groups.get(decode.at / ranks);
            let run = group.map_or(0, |group| group.cached_run(decode.at % ranks, &prompt.blocks));
            prompt.tokens.saturating_sub(run as u64 * u64::from(self.tokens.block_tokens))
        });
        let fleet = &self.cell.fleet;
        if self.links.len() <= prefiller {
            self.links.resize(prefiller + 1, 0);
        }
        let Some(link) = self.links.get_mut(prefiller) else { return };
        *link = now.0.max(*link) + (fleet.handover_token_us * missing as f64) as u64;
        let there = *link + (fleet.handover_ms * 1e3) as u64;
        self.plan(there, Happening::Handed(number as u32));
    }

    /// The KV of a request has reached its decoder.
    pub(super) fn brought(&mut self, number: usize) {
        let ranks = self.cell.fleet.ranks.max(1) as usize;
        let Some(flight) = self.flights.get(number) else { return };
        let Some(Course::Decode { prefiller }) = flight.course else { return };
        let at = flight.at as usize;
        if let Some(group) = self.groups.get_mut(prefiller / ranks) {
            group.release(prefiller % ranks, number as u64);
        }
        let Some(prompt) = flight.made.as_ref().map(|made| self.tokens.prompt(made)) else { return };
        if flight.trial.is_none() {
            return self.end(number, End::Refused);
        }
        self.submit(number, at, prompt, Kv::Given);
    }
}
