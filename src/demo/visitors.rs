//! Made-up users of the demonstration, so that there is something to look at: conversations that grow, and questions about long
//! documents, at a rate that swells and ebbs.
//!
//! Each conversation begins with one of a few system prompts and carries all that was said, as agents do; so the pods' caches are
//! worth something. Bounded: so many conversations, so many requests at once, answers cut. What fails is forgotten: the gate
//! counts it.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::base::Rng;
use crate::runtime::{now, supervise};

/// Most requests at once; what would be one more is left out.
const REQUESTS_MAX: usize = 256;
/// Conversations at once per request per second.
const CONVERSATIONS: f64 = 8.0;
/// Turns after which a conversation begins anew.
const TURNS_MAX: usize = 12;
/// System prompts.
const SYSTEMS: u64 = 3;
/// Documents asked about.
const DOCUMENTS: u64 = 4;
/// Share of requests that are about a document, and of class batch.
const BATCH_SHARE: f64 = 0.12;
/// The rate swells and ebbs by this share, once in so many seconds.
const SWELL: f64 = 0.6;
const SWELL_S: f64 = 90.0;
/// Longest time for an answer, and its longest length \[bytes\].
const ANSWER_TIME: Duration = Duration::from_mins(1);
const ANSWER_BYTES_MAX: usize = 1 << 20;

const WORDS: [&str; 24] = [
    "tide", "gate", "harbour", "the", "of", "a", "pump", "sluice", "and", "water", "level", "opens", "closes",
    "before", "after", "north", "basin", "storm", "when", "keeper", "measures", "slowly", "again", "light",
];

/// What was said in a conversation so far; `None` while an answer to it comes.
type Conversation = Mutex<Option<Vec<Value>>>;

/// Asks `addr` for answers at `rate` requests per second on average, from when `is_open` until it is dropped.
pub(super) async fn visit(addr: SocketAddr, rate: f64, is_open: impl Fn() -> bool) {
    while !is_open() {
        sleep(Duration::from_millis(100)).await;
    }
    let count = (rate * CONVERSATIONS).clamp(1.0, 4_096.0) as usize;
    let conversations: Arc<[Conversation]> = (0..count).map(|_| Mutex::new(Some(Vec::new()))).collect();
    let (room, mut rng) = (Arc::new(Semaphore::new(REQUESTS_MAX)), Rng::new(7));
    let began = now();
    loop {
        let phase = now().since(began).as_secs_f64() / SWELL_S * std::f64::consts::TAU;
        let gap_s = -(1.0 - rng.unit()).ln() / (rate * (1.0 + SWELL * phase.sin()));
        sleep(Duration::from_secs_f64(gap_s.min(10.0))).await;
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else { continue };
        let (all, seed) = (Arc::clone(&conversations), rng.bits());
        supervise("visitor", async move {
            let mut rng = Rng::new(seed);
            if rng.unit() < BATCH_SHARE {
                about_a_document(addr, &mut rng).await;
            } else if let Some(one) = all.get(rng.below(all.len() as u64) as usize) {
                turn(addr, one, &mut rng).await;
            }
            drop(place);
        })
        .detach();
    }
}

/// The next turn of a conversation, unless an answer to it is still coming.
async fn turn(addr: SocketAddr, conversation: &Conversation, rng: &mut Rng) {
    let Some(mut said) = conversation.lock().take() else { return };
    if said.len() >= 2 * TURNS_MAX {
        said.clear();
    }
    if said.is_empty() {
        let system = rng.below(SYSTEMS);
        said.push(json!({"role": "system", "content": text(&mut Rng::new(system), 600)}));
    }
    let length = 8 + rng.below(120) as usize;
    said.push(json!({"role": "user", "content": text(rng, length)}));
    let answer = ask(addr, &said, 30 + rng.below(170), "").await;
    match answer {
        Some(answer) => said.push(json!({"role": "assistant", "content": answer})),
        None => said.clear(),
    }
    *conversation.lock() = Some(said);
}

async fn about_a_document(addr: SocketAddr, rng: &mut Rng) {
    let document = text(&mut Rng::new(1_000 + rng.below(DOCUMENTS)), 5_000);
    let question = text(rng, 20);
    let said = [json!({"role": "user", "content": format!("{document}\n\n{question}")})];
    ask(addr, &said, 40 + rng.below(60), "x-tidegate-class: batch\r\n").await;
}

/// The text of the answer; `None` if it was no good one.
async fn ask(addr: SocketAddr, said: &[Value], max_tokens: u64, fields: &str) -> Option<String> {
    let body = json!({"model": "demo", "stream": true, "max_tokens": max_tokens, "messages": said,
        "stream_options": {"include_usage": true}})
    .to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{fields}\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut io = TcpStream::connect(addr).await.ok()?;
        io.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        io.take(ANSWER_BYTES_MAX as u64).read_to_end(&mut answer).await.ok()?;
        Some(answer)
    };
    let answer = timeout(ANSWER_TIME, exchange).await.ok()??;
    answer_text(&String::from_utf8_lossy(&answer))
}

/// What a stream said, if it came to its good end. A chunk's size line is no event, and no event is split: the gate sends each in one.
fn answer_text(answer: &str) -> Option<String> {
    if !answer.starts_with("HTTP/1.1 200 ") || !answer.contains("data: [DONE]") {
        return None;
    }
    let events = answer.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let pieces = events.filter_map(|event| event.pointer("/choices/0/delta/content")?.as_str().map(str::to_owned));
    Some(pieces.collect())
}

/// Words of nothing.
fn text(rng: &mut Rng, words: usize) -> String {
    let word = |_| WORDS.get(rng.below(WORDS.len() as u64) as usize).copied().unwrap_or_default();
    (0..words).map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_from_a_good_stream_only() {
        let good = "HTTP/1.1 200 OK\r\n\r\n2f\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"high \"}}]}\n\n\r\n\
            2f\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"water\"}}]}\n\n\r\ndata: {\"choices\":[]}\n\ndata: [DONE]\n\n";
        assert_eq!(answer_text(good).as_deref(), Some("high water"));
        assert_eq!(answer_text(&good.replace("[DONE]", "[")), None);
        assert_eq!(answer_text(&good.replace("200 OK", "429 Too Many Requests")), None);
    }

    #[test]
    fn documents_and_system_prompts_are_the_same_each_time() {
        assert_eq!(text(&mut Rng::new(1), 50), text(&mut Rng::new(1), 50));
        assert_eq!(text(&mut Rng::new(1), 50).split(' ').count(), 50);
    }
}
