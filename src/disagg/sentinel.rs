//! Whether the decoder read what the prefiller wrote: both make a first token from the same prompt, so theirs must agree.
//!
//! Under greedy sampling they are equal, up to ties that rounding breaks; sampled, the decoder's is one of those that the
//! prefiller thought likely, if these are nearly all the probability there is. Where that does not hold, and where a token
//! shows no text (calls of tools, special tokens), nothing is said: a false alarm costs a prefill, silence only the check.
use crate::api::{Alternative, Anatomy, Api, GRAMMARS, Opening, alternatives, json, opening_of_body, opening_of_event};

use super::life::Check;

/// What the listed first tokens must add up to, so that one that is not listed is a wrong one.
const NEARLY_ALL: f64 = 0.9999;
/// A token less likely than the best by no more than this may win a tie by rounding \[natural logarithm\].
const TIE: f64 = 0.25;
/// Events of a decoder without text after which nothing is expected any more.
const EVENTS_MAX: u32 = 16;

/// How a request's first token is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// The likeliest.
    Greedy,
    /// By chance, all by the model's own probabilities.
    Chance,
    /// By chance among the 10 likeliest at most.
    Few,
    /// By chance, and by rules that the listed probabilities do not show, or flatter than they are.
    Unknown,
}

/// Members after which, as after [`GRAMMARS`], the listed probabilities are not those drawn from.
const RULES: [&str; 6] =
    ["logit_bias", "allowed_token_ids", "bad_words", "repetition_penalty", "min_tokens", "tool_choice"];

impl Sampling {
    /// Reads it from a body.
    pub fn of(anatomy: &Anatomy<'_>) -> Self {
        let sampling = anatomy.value("sampling_params");
        let value = |name: &str| anatomy.value(name).or_else(|| sampling.and_then(|object| json::member(object, name)));
        let number = |name: &str| value(name).and_then(|value| std::str::from_utf8(value).ok()?.parse::<f64>().ok());
        let (temperature, top_k) = (number("temperature").unwrap_or(1.0), number("top_k").unwrap_or(0.0));
        let is_set =
            |name: &&str| value(name).is_some_and(|value| !matches!(value, b"null" | b"\"auto\"" | b"\"none\""));
        match () {
            () if RULES.iter().chain(&GRAMMARS).any(is_set) => Self::Unknown,
            () if temperature <= 0.0 => Self::Greedy,
            () if (1.0..=10.0).contains(&top_k) => Self::Few,
            () if temperature <= 1.0 => Self::Chance,
            () => Self::Unknown,
        }
    }

    /// Whether the prefiller should list the likeliest first tokens.
    pub const fn needs_alternatives(self) -> bool {
        !matches!(self, Self::Unknown)
    }
}

/// What the prefiller said of the first token.
#[derive(Clone, Debug, PartialEq)]
pub enum Proof {
    /// One of these texts, and nothing else; `is_all` is false if others are as good.
    Texts {
        /// The texts.
        texts: Vec<String>,
        /// Whether any other text is wrong.
        is_all: bool,
    },
    /// This token id.
    Id(u64),
    /// The answer is empty.
    End,
    /// Nothing, but that something comes: an opening without a token says nothing about the blocks.
    Any,
}

impl Proof {
    /// What an answer of the prefill leg proves; `None` if nothing.
    pub fn of(api: Api, body: &[u8], sampling: Sampling) -> Option<Self> {
        let listed = alternatives(api, body);
        let own = opening_of_body(api, body);
        match (sampling, own) {
            (Sampling::Greedy, Opening::Text(text)) => Some(Self::greedy(text.into_owned(), &listed)),
            (Sampling::Greedy, Opening::Id(id)) => Some(Self::Id(id)),
            (Sampling::Greedy, Opening::End) => Some(Self::End),
            // If its own text is none of those listed, these are not what is shown.
            (Sampling::Chance | Sampling::Few, Opening::Text(text))
                if listed.iter().any(|one| one.text.trim() == text.trim()) =>
            {
                let mass: f64 = listed.iter().map(|one| one.logprob.exp()).sum();
                let is_all = sampling == Sampling::Few || mass >= NEARLY_ALL;
                let texts: Vec<String> = listed.into_iter().map(|one| one.text).collect();
                Some(Self::Texts { is_all: is_all && show(&texts), texts })
            }
            _ => None,
        }
    }

    fn greedy(own: String, listed: &[Alternative]) -> Self {
        let best = listed.iter().map(|one| one.logprob).fold(f64::NEG_INFINITY, f64::max);
        let ties = listed.iter().filter(|one| best - one.logprob <= TIE && one.text != own);
        let mut texts: Vec<String> = ties.map(|one| one.text.clone()).collect();
        let is_all = show(&texts);
        texts.push(own);
        Self::Texts { texts, is_all }
    }
}

/// Whether all of these tokens show text: one that does not, the end of the answer among them, cannot be told from silence.
fn show(texts: &[String]) -> bool {
    texts.iter().all(|text| !text.trim().is_empty() && !is_special(text))
}

/// Half of a character, or the name of a token that is left out of texts.
fn is_special(text: &str) -> bool {
    text.contains('\u{FFFD}') || text.starts_with('<') && text.ends_with('>') && text.len() > 2
}

/// Watches the beginning of a decoder's answer.
#[derive(Clone, Debug)]
pub struct Sentinel {
    api: Api,
    proof: Proof,
    text: String,
    events: u32,
    said: Option<Check>,
}

impl Sentinel {
    /// A watch over an answer of this API.
    pub const fn new(api: Api, proof: Proof) -> Self {
        Self { api, proof, text: String::new(), events: 0, said: None }
    }

    /// Whether rounding alone may explain that the tokens differ: the likeliest ones are not known.
    pub const fn is_weak(&self) -> bool {
        !matches!(self.api, Api::Chat | Api::Completions)
    }

    /// Whether any text came.
    pub const fn has_text(&self) -> bool {
        !self.text.is_empty()
    }

    /// What is known so far; `None`: more of the answer is needed.
    pub const fn said(&self) -> Option<Check> {
        self.said
    }

    /// Takes an event of the stream; `data` is `None` if it was too long to be kept.
    pub fn event(&mut self, name: &[u8], data: Option<&[u8]>) {
        if self.said.is_some() {
            return;
        }
        self.events += 1;
        let opening = data.map_or(Opening::Other, |data| opening_of_event(self.api, name, data));
        self.said = self.judge(&opening);
        if self.said.is_none() && self.events >= EVENTS_MAX {
            self.said = Some(Check::Open);
        }
    }

    /// Takes a whole answer.
    pub fn body(&mut self, body: &[u8]) -> Check {
        let said = self.judge(&opening_of_body(self.api, body)).unwrap_or(Check::Open);
        self.said = Some(said);
        said
    }

    fn judge(&mut self, opening: &Opening<'_>) -> Option<Check> {
        match (&self.proof, opening) {
            (_, Opening::Nothing) => None,
            (Proof::Id(id), Opening::Id(other)) => Some(verdict(id == other)),
            (Proof::End, Opening::End) => Some(Check::Agrees),
            (Proof::End, Opening::Text(_)) => Some(Check::Differs),
            (Proof::Texts { .. }, Opening::Text(text)) => {
                self.text.push_str(text);
                self.compare()
            }
            _ => Some(Check::Open),
        }
    }

    /// Whether the decoder's text begins as one of the prefiller's, white space before it apart: parsers strip it.
    fn compare(&self) -> Option<Check> {
        let Proof::Texts { texts, is_all } = &self.proof else { return Some(Check::Open) };
        let got = self.text.trim_start();
        let mut may_be = false;
        for text in texts {
            let wanted = text.trim_start();
            let (got, wanted) = if wanted.is_empty() { (&*self.text, &**text) } else { (got, wanted) };
            if !wanted.is_empty() && got.starts_with(wanted) {
                return Some(Check::Agrees);
            }
            may_be |= wanted.starts_with(got);
        }
        match (may_be, is_all) {
            (true, _) => None,
            (false, true) => Some(Check::Differs),
            (false, false) => Some(Check::Open),
        }
    }
}

const fn verdict(is_equal: bool) -> Check {
    if is_equal { Check::Agrees } else { Check::Differs }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn sampling(body: &Value) -> Sampling {
        Sampling::of(&Anatomy::read(Api::Chat, body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn what_decides_a_first_token_is_read_from_the_body() {
        for (body, expected) in [
            (json!({"temperature":0}), Sampling::Greedy),
            (json!({"temperature":0.0,"response_format":{"type":"json_object"}}), Sampling::Unknown),
            (json!({}), Sampling::Chance),
            (json!({"temperature":1.5}), Sampling::Unknown),
            (json!({"temperature":1.5,"top_k":5}), Sampling::Few),
            (json!({"temperature":0.5,"top_k":-1,"tool_choice":"auto"}), Sampling::Chance),
            (json!({"sampling_params":{"temperature":0}}), Sampling::Greedy),
        ] {
            assert_eq!(sampling(&body), expected, "{body}");
        }
    }

    /// The answer of a prefill: its own token, and the likeliest.
    fn reply(own: &str, listed: &[(&str, f64)]) -> String {
        let top: Vec<_> = listed.iter().map(|(token, logprob)| json!({"token":token,"logprob":logprob})).collect();
        let logprobs = json!({"content":[{"token":own,"logprob":0.0,"top_logprobs":top}]});
        let finish = if own.is_empty() { "stop" } else { "length" };
        json!({"choices":[{"message":{"content":own},"logprobs":logprobs,"finish_reason":finish}]}).to_string()
    }

    fn check(reply: &str, sampling: Sampling, pieces: &[&str]) -> Option<Check> {
        let mut sentinel = Sentinel::new(Api::Chat, Proof::of(Api::Chat, reply.as_bytes(), sampling)?);
        let role = json!({"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}).to_string();
        sentinel.event(b"", Some(role.as_bytes()));
        assert_eq!(sentinel.said(), None);
        for piece in pieces {
            let finish = if piece.is_empty() { json!("stop") } else { Value::Null };
            let event = json!({"choices":[{"delta":{"content":piece},"finish_reason":finish}]}).to_string();
            sentinel.event(b"", Some(event.as_bytes()));
        }
        sentinel.said()
    }

    #[test]
    fn a_greedy_first_token_is_the_same_up_to_ties() {
        let told = reply(" move", &[(" move", -0.5), ("tie", -0.6), ("other", -3.0)]);
        let greedy = |pieces: &[&str]| check(&told, Sampling::Greedy, pieces);
        assert_eq!(greedy(&["move on"]), Some(Check::Agrees));
        assert_eq!(greedy(&["mo"]), None);
        assert_eq!(greedy(&["mo", "ve"]), Some(Check::Agrees));
        assert_eq!(greedy(&["tie"]), Some(Check::Agrees));
        assert_eq!(greedy(&["other"]), Some(Check::Differs));
        assert_eq!(greedy(&[""]), Some(Check::Open), "a stop string may have been met at once");
        assert_eq!(check(&reply("", &[]), Sampling::Greedy, &["text"]), Some(Check::Differs));
        assert_eq!(check(&reply("", &[]), Sampling::Greedy, &[""]), Some(Check::Agrees));
    }

    #[test]
    fn a_sampled_first_token_is_judged_only_if_the_likely_ones_are_nearly_all() {
        let sure = reply("a", &[("a", (0.7_f64).ln()), ("b", (0.29999_f64).ln())]);
        let vague = reply("a", &[("a", (0.5_f64).ln()), ("b", (0.3_f64).ln())]);
        let hidden = reply("a", &[("token_id:7", (0.9_f64).ln()), ("token_id:9", (0.0999_f64).ln())]);
        assert_eq!(check(&hidden, Sampling::Chance, &["c"]), None, "texts that are not shown prove nothing");
        assert_eq!(check(&sure, Sampling::Chance, &["b c"]), Some(Check::Agrees));
        assert_eq!(check(&sure, Sampling::Chance, &["c"]), Some(Check::Differs));
        assert_eq!(check(&vague, Sampling::Chance, &["c"]), Some(Check::Open));
        assert_eq!(check(&vague, Sampling::Few, &["c"]), Some(Check::Differs));
        assert_eq!(check(&sure, Sampling::Unknown, &["c"]), None);
        let special = reply("a", &[("a", (0.7_f64).ln()), ("<|end|>", (0.29999_f64).ln())]);
        assert_eq!(check(&special, Sampling::Chance, &["c"]), Some(Check::Open));
    }

    #[test]
    fn an_answer_that_shows_no_text_is_not_judged() {
        let proof = Proof::Texts { texts: vec!["x".to_owned()], is_all: true };
        let mut sentinel = Sentinel::new(Api::Chat, proof.clone());
        let call = br#"{"choices":[{"delta":{"tool_calls":[{"index":0}]},"finish_reason":null}]}"#;
        sentinel.event(b"", Some(call));
        assert_eq!(sentinel.said(), Some(Check::Open));
        let mut silent = Sentinel::new(Api::Chat, proof.clone());
        (0..EVENTS_MAX).for_each(|_| silent.event(b"", Some(b"{}")));
        assert_eq!(silent.said(), Some(Check::Open));
        let whole = br#"{"choices":[{"message":{"content":"y"},"finish_reason":"stop"}]}"#;
        assert_eq!(Sentinel::new(Api::Chat, proof).body(whole), Check::Differs);
    }
}
