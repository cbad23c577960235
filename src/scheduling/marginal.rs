//! What a request costs on a pod, to itself and to the others there, in seconds. The formula of the default scorer, and of the
//! survey that spares it most pods of a large fleet.
//!
//! ```text
//! J = w·(max(W, W_kv, opens) + p·(1 + 6·f) + loads) + x·d·p + σ·p̄ + ō·s + x·ō·k·n·(c + d·L)
//! p    = b·u + e·u·(m + u/2) + ⌈u/B⌉·a            own prefill: u uncached tokens behind m cached ones
//! W_kv = max(0, K + L − m_pinned + ō·(n + k)/2 − C)/C · ō·s     wait for room in a KV cache that will be full; 0 while C is unknown
//! s    = a + c·(n + k) + d·(A + k·L)              a decode step with this request's k answers in it
//! σ    = 60·U/(1 − U)                             price of uncached prefill: U is the fleet's mean of min(1, K/C), at most 0.97;
//!                                                 the prefill p̄ it is for is that of a pod of the fleet's mean step time
//! ```
//! Where the prompt's KV is brought from another pod, `p` is the time that takes, `W` is less by the time until it begins, and there
//! is no `d·p` and no price.
//!
//! `f` what is not known because other gates choose in the same moment: by chance, up to their share of the load; 0 alone.
//! `W` predicted seconds of prefill sent there and not done, `n` requests, `d` those decoding (those on other data-parallel
//! ranks of the engine too, which step together, and those whose KV will be brought), `A` their contexts added up, `K` the KV they occupy (shared prefixes once,
//! tokens generated so far included), `C` the capacity, `a`…`e` the pod's step time, `ō` expected tokens of an answer, `L` the
//! prompt. `w` is what a second before the first token is worth: it follows class and SLO. Every part is in seconds, so
//! nothing has to be weighed against anything else per workload.
use super::candidates::Candidates;
use super::request::{Context, Handover, Means, Request, Step};
use super::view::{PodView, Warm};
use crate::base::{Mono, Tokens};
use crate::pods::{Glance, StepTime};

/// Highest occupancy that the price of uncached prefill knows.
const OCCUPANCY_MAX: f64 = 0.97;
/// Requests like this one that others may have sent to a pod in the same moment.
const UNSEEN: f64 = 6.0;

/// Constants of the formula that are not learnt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// `w` of requests that do not say.
    pub urgency: f64,
    /// `x`: what a second of another request is worth.
    pub others: f64,
    /// The 60 in `σ`.
    pub cache_price: f64,
    /// `ō` where nothing is known of the model's answers \[tokens\].
    pub output_tokens: f64,
    /// Seconds to load an adapter that is not on the pod.
    pub adapter_s: f64,
    /// Seconds to compile a grammar that is not on the pod.
    pub grammar_s: f64,
    /// Seconds to encode one image or clip that is not cached.
    pub media_s: f64,
}

/// What of a request goes into the formula, the same for all pods.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    prompt: Tokens,
    tokens: f64,
    urgency: f64,
    is_first: bool,
    others: f64,
    /// `σ`.
    price: f64,
    /// Step time that the price is for.
    mean: StepTime,
    /// `ō`.
    output: f64,
    /// `k`.
    answers: f64,
    adapter_s: f64,
    grammar_s: f64,
    /// Seconds of encoding per uncached prompt token.
    media_s: f64,
    /// The prompt's KV is brought, not computed.
    brought: Option<Handover>,
}

/// What of a pod goes into the formula.
#[derive(Clone, Copy, Debug)]
struct Place {
    step: StepTime,
    hit: Tokens,
    /// `max(W, opens)`.
    wait: f64,
    /// See [`PodView::blur`].
    blur: f64,
    requests: f64,
    decoding: f64,
    context: f64,
    /// `K − m_pinned`.
    occupied: f64,
    /// `C`; infinite while unknown.
    capacity: f64,
    loads: f64,
}

/// The cost of a cold prompt as a line through a pod's load.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Line {
    step: StepTime,
    base: f64,
    request: f64,
    decoding: f64,
    context: f64,
}

/// The parts of a cost, all in seconds; they add up to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Terms {
    /// Before its prefill begins: queue, room in the KV cache, or a pod that asked to be spared; times `w`.
    pub wait: f64,
    /// Its own prefill, times `w`.
    pub prefill: f64,
    /// What others may have sent there in the same moment, by chance; times `w`.
    pub unseen: f64,
    /// Loading an adapter, compiling a grammar, encoding media; times `w`.
    pub loads: f64,
    /// Its prefill delays those decoding there.
    pub stall: f64,
    /// Its prefill takes capacity that hits would spare.
    pub price: f64,
    /// Its own decoding.
    pub decode: f64,
    /// Its decoding slows the others.
    pub slow: f64,
    /// `w`, no part of the sum.
    pub urgency: f64,
}

impl Terms {
    /// Names and values, in order.
    pub const fn named(&self) -> [(&'static str, f64); 8] {
        [
            ("wait", self.wait),
            ("prefill", self.prefill),
            ("unseen", self.unseen),
            ("loads", self.loads),
            ("stall", self.stall),
            ("price", self.price),
            ("decode", self.decode),
            ("slow", self.slow),
        ]
    }

    /// Predicted time to the first token \[seconds\].
    pub fn first_s(&self) -> f64 {
        (self.wait + self.prefill + self.unseen + self.loads) / self.urgency.max(f64::MIN_POSITIVE)
    }

    /// The cost \[seconds\].
    pub const fn sum(&self) -> f64 {
        self.wait + self.prefill + self.unseen + self.loads + self.stall + self.price + self.decode + self.slow
    }
}

impl Ask {
    /// What the formula needs of a request, in a fleet of these means.
    pub fn of(request: &Request<'_>, rates: &Rates, means: &Means) -> Self {
        let tokens = request.prompt_tokens.0 as f64;
        Self {
            prompt: request.prompt_tokens,
            tokens,
            urgency: request.urgency.unwrap_or(rates.urgency),
            is_first: request.is_first,
            others: rates.others,
            price: Self::price(rates, means.kv_share),
            mean: means.step,
            output: request.output(rates.output_tokens),
            answers: f64::from(request.answers.max(1)),
            adapter_s: rates.adapter_s,
            grammar_s: rates.grammar_s,
            media_s: rates.media_s * f64::from(request.media) / tokens.max(1.0),
            brought: (request.step == Step::Decode).then_some(request.handover),
        }
    }

    /// The parts of the cost on a pod at `now`.
    pub fn terms(&self, pod: &PodView, now: Mono) -> Terms {
        self.on(&self.place(pod, now))
    }

    /// The cost on a pod at `now` \[seconds\].
    #[inline]
    pub fn cost(&self, pod: &PodView, now: Mono) -> f64 {
        self.on(&self.place(pod, now)).sum()
    }

    /// The cost on a pod of which only the counters are looked at: a calm pod without other ranks, with everything
    /// loaded. The price is left out. `line` is kept from pod to pod: most of a fleet has one step time, and nothing of the
    /// prompt, and then the cost is a sum of four products.
    #[inline]
    pub(super) fn rough(&self, seen: &Glance, hit: Tokens, line: &mut Line) -> f64 {
        let (foreign, foreign_tokens) = seen.others;
        let (requests, decoding) = (seen.requests + foreign, seen.decoding + foreign);
        let context = seen.context_tokens + foreign_tokens;
        let occupied = seen.pinned_tokens + foreign_tokens;
        let wait = seen.wait_s + self.held(seen.held_s, seen.held_first_s);
        if hit.0 == 0 && occupied + self.tokens + self.growth(requests) <= seen.capacity {
            if line.step != seen.step {
                *line = self.line(seen.step);
            }
            let load = line.request * requests + line.decoding * decoding + line.context * context;
            return line.base + self.urgency * (wait - self.lead_s()).max(0.0) + load;
        }
        let place = Place {
            step: seen.step,
            hit: hit.min(self.prompt),
            wait,
            blur: 0.0,
            requests,
            decoding,
            context,
            occupied,
            capacity: seen.capacity,
            loads: 0.0,
        };
        let terms = self.on(&place);
        terms.sum() - terms.price
    }

    /// The cost on pods of this step time that hold nothing of the prompt and have room for it, as a line through their load.
    pub(super) fn line(&self, step: StepTime) -> Line {
        let idle = Place {
            step,
            hit: Tokens(0),
            wait: 0.0,
            blur: 0.0,
            requests: 0.0,
            decoding: 0.0,
            context: 0.0,
            occupied: 0.0,
            capacity: f64::INFINITY,
            loads: 0.0,
        };
        let (terms, prefill) = (self.on(&idle), step.prefill(self.prompt.0, 0));
        let slow = self.others * self.output * self.answers * (step.c + step.d * self.tokens);
        Line {
            step,
            base: terms.sum() - terms.price,
            request: self.output * step.c + slow,
            decoding: if self.brought.is_some() { 0.0 } else { self.others * prefill },
            context: self.output * step.d,
        }
    }

    /// What waits at the gate for a pod and goes before this one.
    const fn held(&self, all_s: f64, first_s: f64) -> f64 {
        if self.is_first { first_s } else { all_s }
    }

    /// What a second of own prefill costs on top, in a fleet whose KV cache is pinned to `kv_share`.
    fn price(rates: &Rates, kv_share: f64) -> f64 {
        let occupancy = kv_share.clamp(0.0, OCCUPANCY_MAX);
        rates.cache_price * occupancy / (1.0 - occupancy)
    }

    #[inline]
    fn place(&self, pod: &PodView, now: Mono) -> Place {
        let foreign = pod.foreign;
        let foreign_tokens = pod.foreign_tokens;
        let opens = pod.busy_until.map_or(0.0, |until| until.since(now).as_secs_f64());
        let cold = |warm: Warm, takes: f64| if warm == Warm::No { takes } else { 0.0 };
        Place {
            step: pod.step,
            hit: (pod.hit + pod.guessed).min(self.prompt),
            wait: (pod.load.wait_s + self.held(pod.load.held_s, pod.load.held_first_s)).max(opens),
            blur: pod.blur,
            requests: f64::from(pod.load.requests) + foreign,
            decoding: f64::from(pod.load.decoding() + pod.peers_decoding + pod.load.coming) + foreign,
            context: pod.load.context_tokens.0 as f64 + foreign_tokens,
            occupied: pod.load.pinned_tokens.0 as f64 + foreign_tokens - pod.pinned.0 as f64,
            capacity: pod.capacity.map_or(f64::INFINITY, |tokens| tokens.0.max(1) as f64),
            loads: cold(pod.adapter, self.adapter_s) + cold(pod.grammar, self.grammar_s),
        }
    }

    /// Time in which queued prefill is done anyway.
    #[inline]
    fn lead_s(&self) -> f64 {
        self.brought.map_or(0.0, |brought| brought.lead_s)
    }

    #[inline]
    fn on(&self, place: &Place) -> Terms {
        let step = &place.step;
        let uncached = self.prompt.less(place.hit);
        let prefill = match self.brought {
            Some(brought) => brought.setup_s + brought.token_s * uncached.0 as f64,
            None => step.prefill(uncached.0, place.hit.0),
        };
        let stall = if self.brought.is_some() { 0.0 } else { self.others * place.decoding * prefill };
        let sequences = place.requests + self.answers;
        let own_step = step.decode(sequences, place.context + self.answers * self.tokens);
        let decode = self.output * own_step;
        let lacking = place.occupied + self.tokens + self.growth(place.requests) - place.capacity;
        let room = if lacking > 0.0 { lacking / place.capacity * decode } else { 0.0 };
        let media = self.media_s * uncached.0 as f64;
        let slow = self.others * self.output * self.answers * place.requests * (step.c + step.d * self.tokens);
        Terms {
            wait: self.urgency * (place.wait - self.lead_s()).max(room),
            prefill: self.urgency * prefill,
            unseen: UNSEEN * place.blur * self.urgency * prefill,
            loads: self.urgency * (place.loads + media),
            stall,
            price: self.priced(place.hit),
            decode,
            slow,
            urgency: self.urgency,
        }
    }

    /// What uncached prefill costs on top, behind a hit of so many tokens.
    #[inline]
    pub(super) fn priced(&self, hit: Tokens) -> f64 {
        if self.price > 0.0 && self.brought.is_none() {
            self.price * self.mean.prefill(self.prompt.less(hit).0, hit.0)
        } else {
            0.0
        }
    }

    /// Tokens that those on a pod and this one will still generate, each half of an answer: an answer under way is met at any
    /// point of it.
    #[inline]
    fn growth(&self, requests: f64) -> f64 {
        0.5 * self.output * (requests + self.answers)
    }
}

/// Means over the serving pods: as the context says, else over the candidates.
pub fn means(cx: &Context<'_>, pods: &Candidates<'_>) -> Means {
    cx.means.unwrap_or_else(|| means_of(pods.iter()))
}

/// Means over these pods.
pub(super) fn means_of<'a>(pods: impl Iterator<Item = &'a PodView>) -> Means {
    let mut sums = Sums::default();
    for pod in pods {
        sums.add(pod.step, pod.occupied(), pod.capacity.map_or(f64::INFINITY, |tokens| tokens.0 as f64));
    }
    sums.means()
}

/// Adds up means. Most pods of a fleet are alike, so what is made of one is kept for the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sums {
    pods: f64,
    steps: StepTime,
    /// The step time of the last pods, and how many in a row had it.
    run: (StepTime, f64),
    shares: f64,
    known: f64,
    inverse: (f64, f64),
}

impl Default for Sums {
    fn default() -> Self {
        let none = StepTime { a: 0.0, b: 0.0, c: 0.0, d: 0.0, e: 0.0 };
        Self { pods: 0.0, steps: none, run: (none, 0.0), shares: 0.0, known: 0.0, inverse: (0.0, 0.0) }
    }
}

impl Sums {
    /// Takes a pod with so many tokens occupied of a capacity, which is infinite or 0 while unknown.
    #[inline]
    pub(super) fn add(&mut self, step: StepTime, occupied: f64, capacity: f64) {
        self.pods += 1.0;
        if self.run.0 != step {
            self.close();
            self.run = (step, 0.0);
        }
        self.run.1 += 1.0;
        if capacity.is_finite() && capacity > 0.0 {
            if self.inverse.0.to_bits() != capacity.to_bits() {
                self.inverse = (capacity, 1.0 / capacity);
            }
            self.shares += (occupied * self.inverse.1).min(1.0);
            self.known += 1.0;
        }
    }

    fn close(&mut self) {
        let (step, count) = self.run;
        self.steps.a += step.a * count;
        self.steps.b += step.b * count;
        self.steps.c += step.c * count;
        self.steps.d += step.d * count;
        self.steps.e += step.e * count;
    }

    pub(super) fn means(mut self) -> Means {
        if self.run.1.to_bits() == self.pods.to_bits() {
            // All alike: exactly that.
            self.steps = self.run.0;
        } else {
            self.close();
            self.steps = self.steps.scaled(1.0 / self.pods.max(1.0));
        }
        Means { kv_share: if self.known > 0.0 { self.shares / self.known } else { 0.0 }, step: self.steps }
    }
}
