//! Several kinds of clients at once, each with its own rate or number, model, class, key and manners: `loadtest run --crowd FILE`.
//!
//! A kind of an open loop sends at times fixed beforehand (Poisson); one of a closed loop keeps so many clients, each waiting for its
//! answer. Clients that obey come again after the `Retry-After` of a 429 or 503, and not before; the others take a refusal for an
//! answer. The load ends after its time; what is under way then is waited for.

use crate::body::{Shape, Template, templates};
use crate::client::{Connections, Watch};
use crate::histogram::Histogram;
use crate::load::pace;
use crate::schedule::{Arrivals, Dice, plan};
use crate::tally::{End, Tally, completion_tokens};
use serde::Deserialize;
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::{JoinSet, LocalSet};

/// A closed-loop client that was refused and does not obey waits so long before its next request.
const BREATH: Duration = Duration::from_millis(10);
/// Part of an answer in which its usage is looked for.
const TAIL_BYTES: usize = 768;

/// A file of kinds of clients.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Crowd {
    /// The kinds.
    pub(crate) clients: Vec<Kind>,
}

/// What clients do that are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Retry {
    /// Nothing: the next request comes when it would have come.
    #[default]
    Ignore,
    /// They come again when they were told to.
    Obey,
}

/// Clients that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Kind {
    /// Name in the report.
    pub(crate) name: String,
    /// Open loop: requests per second.
    pub(crate) rate: Option<f64>,
    /// Closed loop: clients, each with one request at a time.
    pub(crate) concurrency: Option<u16>,
    /// When they begin, and end if before the load \[s\].
    pub(crate) from_s: f64,
    pub(crate) until_s: Option<f64>,
    /// Size of a body, such as `230` or `10k`.
    pub(crate) bytes: String,
    /// Distinct shared prefixes.
    pub(crate) prefixes: usize,
    /// Tokens asked for.
    pub(crate) max_tokens: u64,
    /// Whether answers are streamed.
    pub(crate) stream: bool,
    /// Model asked for.
    pub(crate) model: String,
    /// Class asked for.
    pub(crate) class: Option<String>,
    /// API key, as a tenant has one.
    pub(crate) key: Option<String>,
    /// Time to the first token that is asked for, and by which answers are judged.
    pub(crate) ttft_slo_ms: Option<u64>,
    /// Time between tokens that is asked for.
    pub(crate) itl_slo_ms: Option<u64>,
    /// After this time an answer is of no use.
    pub(crate) deadline_ms: Option<u64>,
    /// What they do when they are refused.
    pub(crate) retry: Retry,
    /// Who obeys gives up after so many more attempts.
    pub(crate) retries_max: u32,
}

impl Default for Kind {
    fn default() -> Self {
        Self {
            name: String::new(),
            rate: None,
            concurrency: None,
            from_s: 0.0,
            until_s: None,
            bytes: "2k".into(),
            prefixes: 64,
            max_tokens: 16,
            stream: true,
            model: crate::MODEL.to_owned(),
            class: None,
            key: None,
            ttft_slo_ms: None,
            itl_slo_ms: None,
            deadline_ms: None,
            retry: Retry::Ignore,
            retries_max: 20,
        }
    }
}

/// How a crowd is let loose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Where to send.
    pub(crate) target: SocketAddr,
    /// Length of the load.
    pub(crate) span: Duration,
    /// Seed of times and prompts.
    pub(crate) seed: u64,
    /// Longest a request may take.
    pub(crate) timeout: Duration,
    /// Requests of open loops that may be under way at once.
    pub(crate) in_flight_max: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reaction {
    /// By kind, in the order of the file.
    pub(crate) tallies: Vec<Tally>,
    /// How late requests of open loops left.
    pub(crate) lag: Histogram,
    /// Requests not sent because too many were under way.
    pub(crate) dropped: u64,
}

impl Crowd {
    /// Reads a file; a kind that makes no sense is named.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let named = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        let crowd: Self = serde_yaml::from_str(&text).map_err(|error| named(error.to_string()))?;
        crowd.check().map_err(named)?;
        Ok(crowd)
    }

    fn check(&self) -> Result<(), String> {
        for kind in &self.clients {
            let bad = |what: &str| Err(format!("clients `{}`: {what}", kind.name));
            if kind.rate.is_some() == kind.concurrency.is_some() {
                return bad("write either `rate` (open loop) or `concurrency` (closed loop)");
            }
            if let Err(what) = crate::target::size(&kind.bytes) {
                return bad(&what);
            }
            let texts = [&kind.class, &kind.key].into_iter().flatten();
            if texts.into_iter().any(|text| text.contains(['\r', '\n'])) {
                return bad("class and key are one line each");
            }
        }
        if self.clients.is_empty() { Err("no clients".to_owned()) } else { Ok(()) }
    }

    /// Lets all loose and waits for the last answer.
    pub(crate) async fn run(&self, terms: Terms) -> io::Result<Reaction> {
        let crew: Vec<Rc<Actor>> = self.clients.iter().map(|kind| Rc::new(Actor::new(kind, terms))).collect();
        let (start, mut due) = pace(times(&self.clients, terms))?;
        let mut reaction = Reaction::default();
        let work = async {
            let mut tasks = JoinSet::new();
            for actor in &crew {
                for _ in 0..actor.kind.concurrency.unwrap_or(0) {
                    tasks.spawn_local(Rc::clone(actor).keeps_asking(start));
                }
            }
            let closed = tasks.len();
            while let Some((at, number)) = due.recv().await {
                while tasks.try_join_next().is_some() {}
                reaction.lag.add(Instant::now().saturating_duration_since(at));
                let Some(actor) = crew.get(number) else { continue };
                if tasks.len() >= closed + terms.in_flight_max {
                    reaction.dropped += 1;
                    continue;
                }
                let actor = Rc::clone(actor);
                tasks.spawn_local(async move {
                    actor.asks(start).await;
                });
            }
            while tasks.join_next().await.is_some() {}
        };
        LocalSet::new().run_until(work).await;
        reaction.tallies = crew.iter().map(|actor| actor.tally.take()).collect();
        Ok(reaction)
    }
}

/// When the clients of open loops send, each time with the number of its kind.
fn times(clients: &[Kind], terms: Terms) -> Vec<(Duration, usize)> {
    let mut all: Vec<(Duration, usize)> = Vec::new();
    for (number, kind) in clients.iter().enumerate() {
        let (from, until) = kind.span(terms.span);
        let seed = terms.seed.wrapping_add(0x5EED * number as u64);
        let times = plan(Arrivals::Poisson, kind.rate.unwrap_or(0.0), until.saturating_sub(from), usize::MAX, seed);
        all.extend(times.into_iter().map(|time| (from + time, number)));
    }
    all.sort_unstable();
    all
}

impl Kind {
    /// When they begin and end, in a load of this length.
    fn span(&self, load: Duration) -> (Duration, Duration) {
        let at = |seconds: f64| Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0)).min(load);
        (at(self.from_s), self.until_s.map_or(load, at))
    }

    /// Header fields of their requests.
    fn fields(&self) -> String {
        let mut fields = String::new();
        let mut add = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                fields.extend([name, ": ", &value, "\r\n"]);
            }
        };
        add("Authorization", self.key.as_ref().map(|key| format!("Bearer {key}")));
        add("x-tidegate-class", self.class.clone());
        add("x-tidegate-ttft-slo-ms", self.ttft_slo_ms.map(|ms| ms.to_string()));
        add("x-tidegate-itl-slo-ms", self.itl_slo_ms.map(|ms| ms.to_string()));
        add("x-tidegate-deadline-ms", self.deadline_ms.map(|ms| ms.to_string()));
        fields
    }

    fn templates(&self) -> Vec<Rc<Template>> {
        let shape = Shape {
            bytes: crate::target::size(&self.bytes).unwrap_or(0),
            prefixes: self.prefixes,
            model: self.model.clone(),
            max_tokens: self.max_tokens,
            stream: self.stream,
            fields: self.fields(),
            is_usage_asked: self.stream,
            ..Shape::default()
        };
        templates(&shape, "/v1/chat/completions").into_iter().map(Rc::new).collect()
    }
}

/// All clients of one kind.
struct Actor {
    kind: Kind,
    terms: Terms,
    templates: Vec<Rc<Template>>,
    connections: Connections,
    dice: RefCell<Dice>,
    tally: RefCell<Tally>,
}

impl Actor {
    fn new(kind: &Kind, terms: Terms) -> Self {
        Self {
            kind: kind.clone(),
            terms,
            templates: kind.templates(),
            connections: Connections::new(terms.target),
            dice: RefCell::new(Dice::new(terms.seed)),
            tally: RefCell::default(),
        }
    }

    /// A client of a closed loop.
    async fn keeps_asking(self: Rc<Self>, start: Instant) {
        let (from, until) = self.kind.span(self.terms.span);
        tokio::time::sleep_until((start + from).into()).await;
        while Instant::now() < start + until {
            if !self.asks(start).await {
                tokio::time::sleep(BREATH).await;
            }
        }
    }

    /// One request, until it is answered or its client gives up. Whether it was answered well.
    async fn asks(&self, start: Instant) -> bool {
        let end = start + self.kind.span(self.terms.span).1;
        let (template, number) = {
            let mut dice = self.dice.borrow_mut();
            let Some(template) = self.templates.get(dice.below(self.templates.len())) else { return false };
            (Rc::clone(template), dice.bits())
        };
        self.tally.borrow_mut().asked += 1;
        for attempt in 0..=self.kind.retries_max {
            let wait = match self.attempt(&template, number).await {
                End::Good => return true,
                End::Refused(Some(wait)) if self.kind.retry == Retry::Obey => wait,
                End::Refused(_) | End::Bad => return false,
            };
            if attempt == self.kind.retries_max || Instant::now() + wait >= end {
                break;
            }
            tokio::time::sleep(wait).await;
            self.tally.borrow_mut().again += 1;
        }
        self.tally.borrow_mut().gave_up += 1;
        // A client of a closed loop that was told to come after the end has nothing more to ask.
        if self.kind.concurrency.is_some() {
            tokio::time::sleep_until(end.into()).await;
        }
        false
    }

    async fn attempt(&self, template: &Template, number: u64) -> End {
        self.tally.borrow_mut().sent += 1;
        let mut tail = Tail::default();
        let work = tokio::time::timeout(self.terms.timeout, self.connections.ask(template, number, &mut tail));
        let result = work.await.unwrap_or_else(|_| Err("timeout".to_owned()));
        let slo = self.kind.ttft_slo_ms.map(Duration::from_millis);
        self.tally.borrow_mut().book(template, result, completion_tokens(&tail.0), slo)
    }
}

/// Keeps the last part of an answer.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Watch for Tail {
    fn bytes(&mut self, bytes: &[u8]) {
        let own = bytes.get(bytes.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
        let kept = TAIL_BYTES - own.len();
        self.0.drain(..self.0.len().saturating_sub(kept));
        self.0.extend_from_slice(own);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use tidegate::sim::http::{Fault, Fleet, Rule, Script, SimConfig};

    fn crowd(yaml: &str) -> Crowd {
        serde_yaml::from_str(yaml).unwrap()
    }

    fn terms(target: SocketAddr, ms: u64) -> Terms {
        let (span, timeout) = (Duration::from_millis(ms), Duration::from_secs(20));
        Terms { target, span, seed: 1, timeout, in_flight_max: 100 }
    }

    #[test]
    fn the_example_can_be_read_and_nonsense_is_told() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/load/overload.yaml");
        assert!(Crowd::read(&path).unwrap().clients.len() >= 3);
        for (yaml, word) in [
            ("clients: []", "no clients"),
            ("clients: [{name: a}]", "either"),
            ("clients: [{name: a, rate: 1, concurrency: 2}]", "either"),
            ("clients: [{name: a, rate: 1, bytes: ten}]", "ten"),
            ("clients: [{name: a, rate: 1, key: \"a\\nb\"}]", "one line"),
        ] {
            assert!(crowd(yaml).check().unwrap_err().contains(word), "{yaml}");
        }
        assert!(serde_yaml::from_str::<Crowd>("clients: [{name: a, rate: 1, rat: 2}]").is_err());
    }

    #[test]
    fn times_of_all_kinds_are_in_order_and_inside_of_their_spans() {
        let crowd = crowd("clients: [{rate: 50}, {concurrency: 3}, {rate: 200, from_s: 4, until_s: 6}]");
        let all = times(&crowd.clients, terms(([127, 0, 0, 1], 1).into(), 10_000));
        assert!(all.is_sorted());
        let of = |kind: usize| all.iter().filter(move |(_, number)| *number == kind).map(|(at, _)| at.as_secs_f64());
        assert!((400..600).contains(&of(0).count()) && of(1).count() == 0 && (330..470).contains(&of(2).count()));
        assert!(of(2).all(|at| (4.0..6.0).contains(&at)));
    }

    #[test]
    fn requests_say_who_asks_and_what_was_promised() {
        let crowd = crowd("clients: [{rate: 1, class: batch, key: tg-1, ttft_slo_ms: 500, deadline_ms: 9000}]");
        let template = Rc::clone(&crowd.clients[0].templates()[0]);
        let text = String::from_utf8(template.front.clone()).unwrap();
        for field in ["Authorization: Bearer tg-1", "x-tidegate-class: batch", "x-tidegate-ttft-slo-ms: 500"] {
            assert!(text.contains(&format!("\r\n{field}\r\n")), "{field}: {text}");
        }
        assert!(!text.contains("itl-slo"));
    }

    #[test]
    fn a_tail_keeps_the_end_at_any_split() {
        let text: Vec<u8> = (0..5_000_u32).flat_map(|number| number.to_string().into_bytes()).collect();
        for step in [1, 100, TAIL_BYTES, TAIL_BYTES + 1, 3_000, text.len()] {
            let mut tail = Tail::default();
            text.chunks(step).for_each(|part| tail.bytes(part));
            assert_eq!(tail.0, text[text.len() - TAIL_BYTES..], "{step}");
        }
    }

    #[tokio::test]
    async fn who_obeys_comes_again_and_who_does_not_goes_on() {
        let fleet = Fleet::start(1, SimConfig { models: vec!["m".into()], ..SimConfig::default() }).await.unwrap();
        let refuses = |code, after| Script::from(Rule::new(Fault::Status(code, Some(after))).times(3));
        let yaml = |more: &str| format!("clients: [{{name: a, rate: 100, model: m, max_tokens: 7, {more}}}]");
        let run = async |yaml: &str| crowd(yaml).run(terms(fleet.pods[0].addr(), 300)).await.unwrap().tallies.remove(0);
        fleet.pods[0].script(refuses(429, 0));
        let obeyed = run(&yaml("retry: obey")).await;
        assert_eq!((obeyed.again, obeyed.gave_up, obeyed.good), (3, 0, obeyed.asked), "{obeyed:?}");
        assert_eq!((obeyed.refusals(), obeyed.tokens), (3, 7 * obeyed.good));
        fleet.pods[0].script(refuses(503, 0));
        let ignored = run(&yaml("retry: ignore")).await;
        assert_eq!((ignored.again, ignored.good), (0, ignored.asked - 3), "{ignored:?}");
        fleet.pods[0].script(refuses(503, 60));
        let late = run(&yaml("retry: obey")).await;
        assert_eq!((late.again, late.gave_up), (0, 3), "nobody waits beyond the end: {late:?}");
        let closed = run("clients: [{name: a, concurrency: 2, model: m, stream: false}]").await;
        assert!(closed.good > 2 && closed.good == closed.sent, "{closed:?}");
        fleet.stop().await;
    }
}
