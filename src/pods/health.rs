//! Passive health of one pod, as a pure machine: what happened goes in, its standing comes out.
//!
//! Full → out (three refused connections, five broken answers in a row, or a poor success ratio) → one probe → ramp → full.
//! News of an attempt that began before the last ejection is ignored: when a pod dies, its hundred broken streams are one
//! death. Only an answer on the data path brings a pod back, never a scrape. What the fleet makes of it (never all out) is
//! decided in [`super::verdict`].
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::health_settings::seconds;
use super::load::Load;
use super::window::Window;
use crate::base::Mono;

pub use super::health_settings::Settings;

/// While another request holds the probe: when to look again.
const PROBE_LOOK: Duration = Duration::from_secs(1);

/// How one attempt on a pod ended, as far as the pod's health is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A good answer, a client fault (4xx), or a stream that reached its end.
    Good,
    /// The connection could not be made.
    ConnectFailed,
    /// Reset, FIN, junk, 502 or 504, or a deadline passed before the answer.
    Broken,
    /// The pod answered 500.
    ServerError,
    /// 503 or 429: busy, not ill.
    Busy {
        /// What the pod asked for; `None` if it did not say.
        retry_after: Option<Duration>,
    },
}

/// Whether a pod may get work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Standing {
    /// Yes.
    Ready,
    /// Yes, but no more than this share (0 to 1) of a fair load: new, recovering, or its last answers were bad.
    Ramp(f64),
    /// Out until then.
    Ejected(Mono),
    /// The ejection ran out; one request may try.
    Probe,
}

/// Proof that an attempt began; says which of the pod's lives it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    epoch: u32,
    probe: bool,
}

impl Ticket {
    /// Whether this attempt is the half-open probe.
    pub const fn is_probe(self) -> bool {
        self.probe
    }
}

/// State of one pod.
#[derive(Debug)]
pub struct Health {
    settings: Arc<Settings>,
    window: Window,
    connect_failures: u32,
    gateway_errors: u32,
    last_error: Mono,
    ejections: u32,
    epoch: u32,
    phase: Phase,
    busy_until: Mono,
    /// Most of a fair load that it gets, in (0, 1].
    share_max: f64,
    /// Where it is published whether a closer look is needed.
    seen: Arc<Load>,
}

#[derive(Debug)]
enum Phase {
    Full,
    /// `since` is set at the first look, so that a pod whose models are not known yet does not ramp unseen.
    Ramp {
        since: Cell<Option<Mono>>,
        completions: u32,
    },
    Out {
        until: Mono,
        probing: bool,
    },
}

impl Default for Health {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Health {
    /// A pod that starts with its full share.
    pub fn new(settings: Arc<Settings>) -> Self {
        Self::watched(settings, Arc::default())
    }

    /// The same, telling `seen` whenever the pod becomes calm or uneasy.
    pub(super) fn watched(settings: Arc<Settings>, seen: Arc<Load>) -> Self {
        Self {
            window: Window::new(seconds(settings.window_s)),
            settings,
            connect_failures: 0,
            gateway_errors: 0,
            last_error: Mono::ZERO,
            ejections: 0,
            epoch: 0,
            phase: Phase::Full,
            busy_until: Mono::ZERO,
            share_max: 1.0,
            seen,
        }
    }

    /// The pod never gets more than this share of a fair load, in (0, 1].
    pub(super) fn limit(&mut self, share_max: f64) {
        self.share_max = share_max;
        self.seen.is_uneasy.store(share_max < 1.0, Relaxed);
    }

    /// Takes new settings; what is known of the pod stays, but the success window starts anew.
    pub fn configure(&mut self, settings: Arc<Settings>) {
        self.window = Window::new(seconds(settings.window_s));
        self.settings = settings;
    }

    /// Starts a ramp at the next look: the pod is new to a fleet at work.
    pub fn newcomer(&mut self) {
        self.phase = Phase::Ramp { since: Cell::new(None), completions: 0 };
        self.seen.is_uneasy.store(true, Relaxed);
    }

    /// The pod was restarted: old news do not count, an ejection ends in a probe at once, else it ramps.
    pub fn restarted(&mut self, now: Mono) {
        self.epoch = self.epoch.wrapping_add(1);
        self.forget();
        self.ejections = 0;
        self.busy_until = Mono::ZERO;
        if let Phase::Out { .. } = self.phase {
            self.phase = Phase::Out { until: now, probing: false };
        } else {
            self.newcomer();
        }
    }

    /// An attempt begins. Takes the probe if it is free; [`Ticket::is_probe`] tells.
    pub fn begin(&mut self, now: Mono) -> Ticket {
        let probe = match &mut self.phase {
            Phase::Out { until, probing } if *until <= now => !std::mem::replace(probing, true),
            _ => false,
        };
        Ticket { epoch: self.epoch, probe }
    }

    /// As [`Health::begin`], but `None` while the pod is out and the probe is not to be had, unless `forced`.
    pub fn admit(&mut self, now: Mono, forced: bool) -> Option<Ticket> {
        let ticket = self.begin(now);
        let is_out = matches!(self.phase, Phase::Out { .. });
        (forced || ticket.probe || !is_out).then_some(ticket)
    }

    /// The attempt never happened, or ended without saying anything about the pod: a probe is free again.
    pub fn abandon(&mut self, ticket: Ticket) {
        if let Phase::Out { probing, .. } = &mut self.phase
            && ticket.probe
            && ticket.epoch == self.epoch
        {
            *probing = false;
        }
    }

    /// The first good byte came: enough for a pod that is out, no sample otherwise (the end will be).
    pub fn answered(&mut self, now: Mono, ticket: Ticket) {
        if matches!(self.phase, Phase::Out { .. }) && ticket.epoch == self.epoch {
            self.end(now, ticket, Outcome::Good);
        }
    }

    /// Books how an attempt ended.
    pub fn end(&mut self, now: Mono, ticket: Ticket, outcome: Outcome) {
        if let Outcome::Busy { retry_after } = outcome {
            self.spare(now, retry_after);
        }
        if ticket.epoch == self.epoch {
            if let Phase::Out { .. } = self.phase {
                self.end_while_out(now, ticket, outcome);
            } else {
                self.count(now, outcome);
            }
        }
        self.seen.is_uneasy.store(!self.is_calm(now), Relaxed);
    }

    /// Books an attempt that began and ended at `now`.
    pub fn on(&mut self, now: Mono, outcome: Outcome) {
        let ticket = self.begin(now);
        self.end(now, ticket, outcome);
    }

    /// Whether the pod may get work at `now`.
    pub fn standing(&self, now: Mono) -> Standing {
        self.seen.is_uneasy.store(!self.is_calm(now), Relaxed);
        match &self.phase {
            Phase::Out { until, .. } if now < *until => Standing::Ejected(*until),
            Phase::Out { probing: true, .. } => Standing::Ejected(now.after(PROBE_LOOK)),
            Phase::Out { .. } => Standing::Probe,
            _ => match self.share(now) {
                share if share < 1.0 => Standing::Ramp(share),
                _ => Standing::Ready,
            },
        }
    }

    /// Until when the pod asked to be spared; `None` if that is over.
    pub fn busy_until(&self, now: Mono) -> Option<Mono> {
        (self.busy_until > now).then_some(self.busy_until)
    }

    fn is_calm(&self, now: Mono) -> bool {
        !matches!(self.phase, Phase::Out { .. }) && self.share(now) >= 1.0 && self.busy_until <= now
    }

    /// Share of a fair load: the ramp, less after errors in a row, so that a pod that fails fast draws no load.
    fn share(&self, now: Mono) -> f64 {
        let errors = self.connect_failures.max(self.gateway_errors);
        let fresh = now.since(self.last_error) < seconds(self.settings.window_s);
        let trust = if errors > 0 && fresh { 1.0 / f64::from(errors.saturating_add(1)) } else { 1.0 };
        trust.min(self.ramp(now)).min(self.share_max)
    }

    fn ramp(&self, now: Mono) -> f64 {
        let Phase::Ramp { since, completions } = &self.phase else { return 1.0 };
        let began = since.get().unwrap_or(now);
        since.set(Some(began));
        let by_time = now.since(began).as_secs_f64() / self.settings.ramp_s.max(0.001);
        let steps = f64::from(self.settings.ramp_completions.max(1));
        by_time.max(f64::from(*completions) / steps).max(1.0 / steps).min(1.0)
    }

    fn spare(&mut self, now: Mono, retry_after: Option<Duration>) {
        let asked = retry_after.unwrap_or(Duration::from_millis(self.settings.busy_default_ms));
        let until = now.after(asked.min(seconds(self.settings.retry_after_max_s)));
        self.busy_until = self.busy_until.max(until);
    }

    /// The probe decides; a good answer to any other attempt that began while the pod was out counts too.
    fn end_while_out(&mut self, now: Mono, ticket: Ticket, outcome: Outcome) {
        if outcome == Outcome::Good {
            self.forget();
            self.phase = Phase::Ramp { since: Cell::new(Some(now)), completions: 1 };
        } else if ticket.probe {
            self.eject(now);
        }
    }

    fn count(&mut self, now: Mono, outcome: Outcome) {
        match outcome {
            Outcome::Good => self.count_good(now),
            Outcome::Busy { .. } => self.connect_failures = 0,
            Outcome::ConnectFailed => {
                self.connect_failures = self.connect_failures.saturating_add(1);
                self.count_bad(now);
            }
            Outcome::Broken | Outcome::ServerError => {
                self.connect_failures = 0;
                self.gateway_errors = self.gateway_errors.saturating_add(1);
                self.count_bad(now);
            }
        }
    }

    fn count_good(&mut self, now: Mono) {
        (self.connect_failures, self.gateway_errors) = (0, 0);
        self.window.add(now, true);
        if let Phase::Ramp { completions, .. } = &mut self.phase {
            *completions = completions.saturating_add(1);
            if self.ramp(now) >= 1.0 {
                self.phase = Phase::Full;
                self.ejections = 0;
            }
        }
    }

    fn count_bad(&mut self, now: Mono) {
        self.last_error = now;
        self.window.add(now, false);
        let (good, all) = self.window.sums();
        let poor = all >= u64::from(self.settings.window_samples_min)
            && (good as f64) < self.settings.success_share_min * all as f64;
        if poor
            || self.connect_failures >= self.settings.connect_failures_max
            || self.gateway_errors >= self.settings.gateway_errors_max
        {
            self.eject(now);
        }
    }

    fn eject(&mut self, now: Mono) {
        self.ejections = self.ejections.saturating_add(1);
        self.epoch = self.epoch.wrapping_add(1);
        self.forget();
        self.phase = Phase::Out { until: now.after(self.settings.ejection(self.ejections)), probing: false };
    }

    fn forget(&mut self) {
        (self.connect_failures, self.gateway_errors) = (0, 0);
        self.window.clear();
    }
}

#[cfg(test)]
mod tests;
