//! Streams: what is common to all APIs. A dialect says which events a stream has, this file sends them as the engine
//! produces tokens, and lets the script interfere.
use super::ask::Ask;
use super::connection::Exchange;
use super::log::Ended;
use super::ranks::Run;
use super::wire::Step;

/// Events to send, each the bytes of one SSE event with its blank line.
pub(super) type Events = Vec<Vec<u8>>;

/// The events of one API.
pub(super) trait Dialect: Send {
    /// Sent right after the head, before the engine has done anything.
    fn early(&mut self, _out: &mut Events) {}
    /// Sent with the first token; `cached` prompt tokens came from the cache.
    fn opening(&mut self, cached: u64, out: &mut Events);
    /// Token `index` of sequence `place`.
    fn token(&mut self, place: usize, index: u64, is_last: bool, out: &mut Events);
    /// An extra content event with this text.
    fn filler(&mut self, text: &str, out: &mut Events);
    /// After the last token, before the good ending.
    fn closing(&mut self, out: &mut Events);
    /// The good ending.
    fn ending(&mut self, out: &mut Events);
    /// A failure, with what vLLM sends after it.
    fn failure(&mut self, out: &mut Events);
}

/// An event without a name.
pub(super) fn data(json: &str) -> Vec<u8> {
    format!("data: {json}\n\n").into_bytes()
}

/// An event with a name.
pub(super) fn named(name: &str, json: &str) -> Vec<u8> {
    format!("event: {name}\ndata: {json}\n\n").into_bytes()
}

/// Sends a stream.
pub(super) async fn stream(x: &mut Exchange<'_>, ask: &Ask, run: Run, dialect: &mut dyn Dialect) -> Step {
    let mut out = Events::new();
    x.wire.begin_stream().await?;
    dialect.early(&mut out);
    send(x, &mut out).await?;
    if let Some(wait) = x.plan.slow_body {
        x.wire.wait(wait).await?;
    }
    let is_failed = tokens(x, ask, &run, dialect, &mut out).await?;
    if !is_failed {
        dialect.closing(&mut out);
        if !x.plan.is_without_good_ending {
            dialect.ending(&mut out);
        }
        send(x, &mut out).await?;
    }
    if x.plan.is_open_after_end {
        return x.wire.fall_silent().await;
    }
    if x.plan.is_without_final_chunk {
        x.wire.flush().await?;
        return Err(Ended::Cut);
    }
    x.wire.end_stream().await?;
    if !is_failed {
        run.complete(ask.output_max.is_some());
    }
    Ok(())
}

/// Sends all tokens, one of each sequence in turn. True if the script made it fail.
async fn tokens(
    x: &mut Exchange<'_>,
    ask: &Ask,
    run: &Run,
    dialect: &mut dyn Dialect,
    out: &mut Events,
) -> Result<bool, Ended> {
    let mut sent = vec![0_u64; ask.wanted.len()];
    let total = ask.output_tokens();
    let mut count = 0;
    loop {
        let mut is_moving = false;
        for (place, (sent, wanted)) in sent.iter_mut().zip(&ask.wanted).enumerate() {
            if x.plan.error_after == Some(count) {
                dialect.failure(out);
                send(x, out).await?;
                return Ok(true);
            }
            if *sent >= run.produced(place) {
                continue;
            }
            if let Some(wait) = x.plan.slow_tokens {
                x.wire.wait(wait).await?;
            }
            if count == 0 {
                dialect.opening(ask.told_cached.unwrap_or_else(|| run.cached()), out);
            }
            dialect.token(place, *sent, *sent + 1 == wanted.tokens, out);
            *sent += 1;
            count += 1;
            is_moving = true;
            if count == 1 && x.plan.event_filler > 0 {
                dialect.filler(&"x".repeat(x.plan.event_filler), out);
            }
            send(x, out).await?;
        }
        if count >= total && x.plan.error_after != Some(count) {
            return Ok(false);
        }
        if !is_moving && count < total {
            x.wire.until(run.changed()).await?;
        }
    }
}

/// Waits until a run is done, for answers that are not streamed.
pub(super) async fn finish(x: &mut Exchange<'_>, ask: &Ask, run: &Run) -> Step {
    while !run.is_done() {
        x.wire.until(run.changed()).await?;
    }
    if let Some(wait) = x.plan.slow_tokens {
        let longest = ask.wanted.iter().map(|wanted| wanted.tokens).max().unwrap_or(0);
        x.wire.wait(wait.saturating_mul(u32::try_from(longest).unwrap_or(u32::MAX))).await?;
    }
    Ok(())
}

async fn send(x: &mut Exchange<'_>, out: &mut Events) -> Step {
    for event in out.drain(..) {
        x.wire.event(&event).await?;
    }
    Ok(())
}
